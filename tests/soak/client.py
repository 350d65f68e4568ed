"""One HTTP request on one connection, so that each is counted once, however it ends."""

import asyncio
import json
from dataclasses import dataclass, field

# A call's own deadline in the soak is below this: what takes longer hangs.
PATIENCE = 90


class Refused(Exception):
    """Nobody took the connection: the bridge is being started again."""


class Broken(Exception):
    """The connection ended before the whole answer was there."""


@dataclass
class Answer:
    status: int
    headers: dict = field(default_factory=dict)
    body: bytes = b""

    def json(self):
        return json.loads(self.body)

    def message(self):
        """The JSON-RPC answer, from JSON or the last event that has one."""
        if "event-stream" not in self.headers.get("content-type", ""):
            return self.json()
        data = [line[5:] for line in self.body.splitlines() if line.startswith(b"data:") and line[5:].strip()]
        return json.loads(data[-1])


class Door:
    """Where the bridge listens."""

    def __init__(self, port):
        self.port = port

    async def open(self):
        try:
            return await asyncio.open_connection("127.0.0.1", self.port)
        except OSError as error:
            raise Refused(str(error)) from error

    async def send(self, method, path, headers=None, body=None):
        """A request on its way: its reader and writer."""
        reader, writer = await self.open()
        content = json.dumps(body).encode() if isinstance(body, (dict, list)) else body or b""
        head = {"Host": f"localhost:{self.port}", "Connection": "close", "Content-Length": str(len(content))}
        head.update({"Content-Type": "application/json"} if isinstance(body, (dict, list)) else {})
        head.update(headers or {})
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items()), "", ""]
        try:
            writer.write("\r\n".join(lines).encode() + content)
            await writer.drain()
        except OSError as error:
            writer.close()
            raise Broken(str(error)) from error
        return reader, writer

    async def ask(self, method, path, headers=None, body=None):
        reader, writer = await self.send(method, path, headers, body)
        try:
            async with asyncio.timeout(PATIENCE):
                return await read(reader)
        except (OSError, EOFError, ValueError, IndexError) as error:
            raise Broken(repr(error)) from error
        finally:
            writer.close()


async def read(reader):
    status = int((await reader.readline()).split()[1])
    headers = {}
    while (line := (await reader.readline()).strip()) != b"":
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.lower()] = value.strip()
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while size := int(await reader.readline(), 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
    elif "content-length" in headers:
        body = await reader.readexactly(int(headers["content-length"]))
    else:
        body = await reader.read()
    return Answer(status, headers, body)
