"""Other programs that put a stdio server behind Streamable HTTP, with the same child.

Pinned, installed under .tools/, and told to log no calls, since that is work nobody asked for.
supergateway starts a child for each session, mcp-proxy one for all; a run opens one session.
mcp-proxy's SDK does not speak 2026-07-28: it asks for a session, so it is measured in one era only.
"""

import os
import shlex
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from bench.contender import Contender, Fault, Missing
from bench.echo_child import COMMAND, ROOT
from bench.mcp_line import LegacyLine, ModernLine

START, END = 60, 10  # seconds to listen, and to end
SHOWN = 20  # lines of a log
TOOLS = ROOT / ".tools"
PATH = "/mcp"


class Peer(Contender):
    #: What puts it under .tools/: commands of this checkout.
    installs: list[list[str]]
    #: What is pinned there.
    pinned: str
    #: The era in which it is called.
    line = LegacyLine

    def command(self, port: int) -> list[str]:
        raise NotImplementedError

    def version(self):
        return self.pinned

    def install(self):
        for command in self.installs:
            try:
                done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
            except OSError as fault:
                raise Missing(str(fault)) from fault
            if done.returncode != 0:
                said = [line for line in done.stderr.splitlines() if line.strip()][-SHOWN:]
                raise Missing("\n    ".join([f"{shlex.join(command)} failed:", *said]))

    def __enter__(self):
        self._folder = tempfile.TemporaryDirectory(prefix="mcpo-bench-")
        self._log = Path(self._folder.name) / "log"
        self._port = free_port()
        try:
            with self._log.open("wb") as log:
                # A group of its own, so that its children end with it.
                self._process = subprocess.Popen(
                    self.command(self._port),
                    cwd=self._folder.name,
                    env=os.environ | {"PATH": f"{TOOLS / 'node/node_modules/.bin'}:{os.environ['PATH']}"},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        """How a peer ends is not what is measured: it is made to."""
        process = getattr(self, "_process", None)
        if process is not None:
            self._signal(signal.SIGTERM)
            try:
                process.wait(END)
            except subprocess.TimeoutExpired:
                pass
            self._signal(signal.SIGKILL)
            process.wait()
        self._folder.cleanup()

    def connect(self):
        try:
            return self.line(self.name, self._port, PATH)
        except Fault as fault:
            raise Fault(f"{fault}{self._tail()}") from fault

    def _wait(self):
        end = time.monotonic() + START
        while time.monotonic() < end:
            if (status := self._process.poll()) is not None:
                raise Fault(f"{self.name}: ended with {status}{self._tail()}")
            try:
                socket.create_connection(("127.0.0.1", self._port), 1).close()
                return
            except OSError:
                time.sleep(0.02)
        raise Fault(f"{self.name}: does not listen after {START} s{self._tail()}")

    def _signal(self, number):
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            pass

    def _tail(self):
        return "\n".join(["; its log ends with", *self._log.read_text(errors="replace").splitlines()[-SHOWN:]])


class Supergateway(Peer):
    name = "supergateway"
    about = "POST /mcp with a session"
    pinned = "supergateway 4.0.0 of npm"
    installs = [
        ["scripts/ensure-npm", "node", "node@24.21.0"],
        ["scripts/ensure-npm", "supergateway", "supergateway@4.0.0"],
    ]

    def command(self, port):
        program = TOOLS / "supergateway/node_modules/.bin/supergateway"
        told = ["--outputTransport", "streamableHttp", "--stateful", "--logLevel", "none", "--port", str(port)]
        return [str(program), "--stdio", shlex.join(COMMAND), *told]


class SupergatewayModern(Supergateway):
    name = "supergateway-modern"
    about = "POST /mcp as 2026-07-28 has it, a child for each call"
    line = ModernLine


class McpProxy(Peer):
    name = "mcp-proxy"
    about = "POST /mcp with a session"
    pinned = "mcp-proxy 0.13.0 of PyPI"
    installs = [["scripts/ensure-venv", "mcp-proxy", "bench/requirements.txt"]]

    def command(self, port):
        program = TOOLS / "mcp-proxy/bin/mcp-proxy"
        return [str(program), "--port", str(port), "--log-level", "ERROR", "--", *COMMAND]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]
