"""No bridge and no child: the same HTTP client against a process that answers from a string.

What HTTP over loopback and this Python client cost by themselves, hence the floor of every
contender that is reached by HTTP.
"""

import json
import os
import signal
import socket

from bench.contender import Contender
from bench.http_line import HttpLine

HEAD_END = b"\r\n\r\n"


class Loopback(Contender):
    name = "loopback"
    about = "HTTP and this client, no bridge, no child"

    def __enter__(self):
        listener = socket.create_server(("127.0.0.1", 0))
        self._port = listener.getsockname()[1]
        measuring = os.getpid()
        self._process = os.fork()
        if self._process == 0:
            _serve_while(listener, measuring)
        listener.close()
        return self

    def __exit__(self, *_):
        os.kill(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)

    def connect(self):
        return HttpLine(self.name, self._port, "/")


def _serve_while(listener, measuring):
    """Serves while its parent `measuring` lives, and never returns: a fork must not go on as it."""
    listener.settimeout(2)
    try:
        while os.getppid() == measuring:
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with connection:
                _answer_all(connection)
    finally:
        os._exit(0)


def _answer_all(connection):
    while True:
        data = b""
        while not _is_whole(data):
            more = connection.recv(65536)
            if not more:
                return
            data += more
        text = json.loads(data.split(HEAD_END, 1)[1])["text"]
        body = json.dumps(text).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)


def _is_whole(data):
    if HEAD_END not in data:
        return False
    head, body = data.split(HEAD_END, 1)
    fields = dict(field.split(b": ", 1) for field in head.lower().split(b"\r\n")[1:])
    return len(body) >= int(fields[b"content-length"])
