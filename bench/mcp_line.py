"""One MCP client over Streamable HTTP, on one keep-alive connection, in either era."""

import json

from bench.contender import Fault, Line
from bench.echo_child import TOOL
from bench.http_line import Connection

LEGACY, MODERN = "2025-06-18", "2026-07-28"
CLIENT = {"name": "bench", "version": "1"}
HEADERS = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}


class McpLine(Line):
    """What both eras share: `tools/call` in, JSON or SSE out."""

    def __init__(self, name: str, port: int, path: str):
        self._connection = Connection(name, port, path)
        self._headers = dict(HEADERS)
        self._meta = {}
        self._last_id = 0

    def wake(self) -> None:
        self._connection.open()

    def call(self, text: str) -> str:
        result = self._request("tools/call", {"name": TOOL, "arguments": {"text": text}, **self._meta})[0]
        if result.get("isError"):
            raise self._connection.fault(f"the tool failed: {result}")
        return result["content"][0]["text"]

    def close(self) -> None:
        self._connection.close()

    def _request(self, method, params):
        """The result, and the headers of the answer."""
        self._last_id += 1
        message = {"jsonrpc": "2.0", "id": self._last_id, "method": method, "params": params}
        answer = self._connection.succeed("POST", json.dumps(message).encode(), self._headers)
        response = response_in(answer.headers.get_content_type(), answer.body, self._last_id)
        if "result" not in response:
            raise self._connection.fault(f"{method} was answered with {response}")
        return response["result"], answer.headers


class LegacyLine(McpLine):
    """With `initialize`, and a session that lasts until `close`."""

    def __init__(self, name: str, port: int, path: str):
        super().__init__(name, port, path)
        hello = {"protocolVersion": LEGACY, "capabilities": {}, "clientInfo": CLIENT}
        result, headers = self._request("initialize", hello)
        if "mcp-session-id" not in headers:
            raise self._connection.fault("initialize gave no session")
        self._headers |= {
            "Mcp-Session-Id": headers["mcp-session-id"],
            "MCP-Protocol-Version": result["protocolVersion"],
        }
        note = json.dumps({"jsonrpc": "2.0", "method": "notifications/initialized"}).encode()
        self._connection.succeed("POST", note, self._headers, status=202)

    def close(self):
        # Its answer says nothing about what was measured.
        try:
            self._connection.send("DELETE", None, self._headers)
        except Fault:
            pass
        super().close()


class ModernLine(McpLine):
    """Without a session: every request says who asks, and in which revision."""

    def __init__(self, name: str, port: int, path: str):
        super().__init__(name, port, path)
        about = {"protocolVersion": MODERN, "clientCapabilities": {}, "clientInfo": CLIENT}
        self._meta = {"_meta": {f"io.modelcontextprotocol/{key}": value for key, value in about.items()}}
        self._headers |= {"MCP-Protocol-Version": MODERN, "Mcp-Method": "tools/call", "Mcp-Name": TOOL}


def response_in(content_type: str, body: bytes, request_id: int) -> dict:
    """The one response in a whole answer; an SSE stream may hold notifications before it."""
    if content_type == "application/json":
        messages = [json.loads(body)]
    elif content_type == "text/event-stream":
        messages = events(body.decode())
    else:
        raise Fault(f"an answer of type {content_type}")
    found = [message for message in messages if "method" not in message]
    if len(found) != 1 or found[0].get("id") != request_id:
        raise Fault(f"request {request_id} was answered with {found}")
    return found[0]


def events(stream: str) -> list[dict]:
    """The messages of an SSE stream that has ended. Comments and events without data carry none."""
    messages, data = [], []
    for line in stream.splitlines():
        if line.startswith("data:"):
            data.append(line.removeprefix("data:").removeprefix(" "))
        elif not line and data:
            text, data = "\n".join(data), []
            if text:
                messages.append(json.loads(text))
    return messages
