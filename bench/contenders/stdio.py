"""The child alone: JSON-RPC over its pipes, in series. Nothing in front of it can be faster."""

import json
import subprocess

from bench.contender import Contender, Fault, Line
from bench.echo_child import COMMAND, TOOL

HELLO = {
    "protocolVersion": "2025-06-18",
    "capabilities": {},
    "clientInfo": {"name": "bench", "version": "1"},
}
END = 5  # seconds that the child has to end once its stdin is closed


class Stdio(Contender):
    name = "stdio"
    about = "the child's bare pipes"

    def __enter__(self):
        self._child = subprocess.Popen(
            COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        try:
            self._line = StdioLine(self._child)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        try:
            self._child.stdin.close()
            self._child.wait(END)
        except (OSError, subprocess.TimeoutExpired):
            self._child.kill()
            self._child.wait()
        self._child.stdout.close()

    def connect(self):
        return self._line


class StdioLine(Line):
    def __init__(self, child):
        self._child = child
        self._last_id = 0
        self._server = self._request("initialize", HELLO)["serverInfo"]
        self._send({"method": "notifications/initialized"})

    def call(self, text: str) -> str:
        result = self._request("tools/call", {"name": TOOL, "arguments": {"text": text}})
        if result.get("isError"):
            raise Fault(f"stdio: the tool failed: {result}")
        return result["content"][0]["text"]

    def close(self):
        """The pipes are the child's life: the contender closes them."""

    def _request(self, method, params):
        self._last_id += 1
        self._send({"id": self._last_id, "method": method, "params": params})
        while True:
            line = self._child.stdout.readline()
            if not line:
                raise Fault(f"stdio: the child ended during {method}; run {' '.join(COMMAND)}")
            message = json.loads(line)
            if "method" in message:  # a notification; the echo child asks nothing
                continue
            if message.get("id") != self._last_id or "result" not in message:
                raise Fault(f"stdio: {method} was answered with {message}")
            return message["result"]

    def _send(self, message):
        try:
            self._child.stdin.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
            self._child.stdin.flush()
        except OSError as fault:
            raise Fault(f"stdio: the child takes no input: {fault}") from fault
