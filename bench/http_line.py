"""One keep-alive HTTP connection, as a client that wants no delay opens it."""

import http.client
import json
import socket

from bench.contender import Fault, Line

TIMEOUT = 10  # seconds for one answer: far beyond any that is worth measuring
HEADERS = {"Content-Type": "application/json", "Accept": "application/json"}


class HttpLine(Line):
    """Posts `{"text": …}` and takes the JSON answer for the echo."""

    def __init__(self, port: int, path: str):
        self._path = path
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
        self._connection.connect()
        self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = self._connection.sock

    def post(self, text: str) -> tuple[int, bytes]:
        body = json.dumps({"text": text}).encode()
        try:
            self._connection.request("POST", self._path, body, HEADERS)
            answer = self._connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException) as fault:
            raise Fault(f"POST {self._path}: {type(fault).__name__}: {fault}") from fault

    def call(self, text: str) -> str:
        status, body = self.post(text)
        if status != 200:
            raise Fault(f"POST {self._path}: {status} {body[:500].decode(errors='replace')}")
        if self._connection.sock is not self._socket:
            raise Fault(f"POST {self._path}: the connection was not kept alive")
        return json.loads(body)

    def close(self) -> None:
        self._connection.close()
