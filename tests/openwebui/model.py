"""A model endpoint that has no model: it does what the last user message says.

The message is a JSON list of steps, each `{"tool": name, "arguments": {…}}`, with any words around
it. Each step becomes a call of the tool; when all are done, the answer is what the tools said.
A tool that was not offered is not called: the answer then names those that were.
"""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NAME = "scripted"


class Model:
    """Serves on a free port until closed."""

    def __init__(self):
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


def text_of(message):
    content = message.get("content") or ""
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content)
    return content


def steps_in(text):
    start, end = text.find("[{"), text.rfind("}]")
    try:
        return json.loads(text[start : end + 2])
    except ValueError:
        return []


def next_turn(request):
    """The next tool call, or the words that end the turn."""
    messages = request.get("messages", [])
    last = max((at for at, message in enumerate(messages) if message["role"] == "user"), default=0)
    # Open WebUI may put words of its own around the user's.
    steps = steps_in(text_of(messages[last])) if messages else []
    answers = [text_of(message) for message in messages[last:] if message["role"] == "tool"]
    offered = [tool["function"]["name"] for tool in request.get("tools", [])]
    if len(answers) >= len(steps):
        return None, "\n\n".join(answers) or f"Nothing to do. Offered: {', '.join(offered)}"
    step = steps[len(answers)]
    if step["tool"] not in offered:
        return None, f"There is no tool {step['tool']}. Offered: {', '.join(offered)}"
    return step, None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        models = [{"id": NAME, "object": "model", "created": 0, "owned_by": "test"}]
        self._json({"object": "list", "data": models})

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        step, words = next_turn(request)
        delta = {"role": "assistant", "content": words or ""}
        if step:
            function = {"name": step["tool"], "arguments": json.dumps(step.get("arguments", {}))}
            delta["tool_calls"] = [{"index": 0, "id": f"call_{time.time_ns()}", "type": "function", "function": function}]
        ends = "tool_calls" if step else "stop"
        if not request.get("stream"):
            self._json(_frame("chat.completion", {"message": delta, "finish_reason": ends}))
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for choice in ({"delta": delta, "finish_reason": None}, {"delta": {}, "finish_reason": ends}):
            self._event(json.dumps(_frame("chat.completion.chunk", choice)))
        self._event("[DONE]")
        self.close_connection = True

    def _event(self, text):
        self.wfile.write(f"data: {text}\n\n".encode())
        self.wfile.flush()

    def _json(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _frame(kind, choice):
    return {"id": "x", "object": kind, "created": 0, "model": NAME, "choices": [{"index": 0} | choice]}
