"""One keep-alive HTTP connection, as a client that wants no delay opens it."""

import http.client
import json
import socket
from typing import NamedTuple

from bench.contender import Fault, Line

TIMEOUT = 10  # seconds for one answer: far beyond any that is worth measuring
HEADERS = {"Content-Type": "application/json", "Accept": "application/json"}


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes


class Connection:
    """Sends each request on the connection that it opened last, or fails. `name` is for its faults."""

    def __init__(self, name: str, port: int, path: str):
        self._name, self._path = name, path
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
        self.open()

    def open(self) -> None:
        self._connection.close()
        try:
            self._connection.connect()
        except OSError as fault:
            raise self.fault(f"{type(fault).__name__}: {fault}") from fault
        self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = self._connection.sock

    def send(self, method: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        """The whole answer, whatever its status."""
        try:
            self._connection.request(method, self._path, body, headers)
            answer = self._connection.getresponse()
            return Answer(answer.status, answer.headers, answer.read())
        except (OSError, http.client.HTTPException) as fault:
            raise self.fault(f"{type(fault).__name__}: {fault}") from fault

    def succeed(self, method: str, body: bytes | None, headers: dict[str, str], status: int = 200) -> Answer:
        answer = self.send(method, body, headers)
        if answer.status != status:
            raise self.fault(f"{answer.status} {answer.body[:500].decode(errors='replace')}")
        if self._connection.sock is not self._socket:
            raise self.fault("the connection was not kept alive")
        return answer

    def fault(self, what: str) -> Fault:
        return Fault(f"{self._name}: {self._path}: {what}")

    def close(self) -> None:
        self._connection.close()


class HttpLine(Line):
    """Posts `{"text": …}` and takes the JSON answer for the echo."""

    def __init__(self, name: str, port: int, path: str):
        self._connection = Connection(name, port, path)

    def wake(self) -> None:
        self._connection.open()

    def post(self, text: str) -> Answer:
        return self._connection.send("POST", self._body(text), HEADERS)

    def call(self, text: str) -> str:
        return json.loads(self._connection.succeed("POST", self._body(text), HEADERS).body)

    def close(self) -> None:
        self._connection.close()

    def _body(self, text):
        return json.dumps({"text": text}).encode()
