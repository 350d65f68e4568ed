"""The bridge with the child as a `shared` server, reached through each of its doors."""

import json
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from bench.contender import Contender, Fault
from bench.echo_child import COMMAND, TOOL
from bench.http_line import HttpLine
from bench.mcp_line import LegacyLine, ModernLine

START, END = 60, 30  # seconds for the bridge to serve its first call, and to end
NOT_YET = 503  # the catalogue is still being learnt
LOG_SHOWN = 20  # lines
PATH = f"/mcpo/child/{TOOL}"
MCP = "/mcp/child"


class Bridge(Contender):
    """Through the OpenAPI door."""

    name = "bridge"
    about = f"POST {PATH}, one keep-alive connection"

    def __init__(self, binary: Path):
        self._binary = binary

    def version(self):
        printed = subprocess.run([self._binary, "--version"], capture_output=True, text=True, check=True)
        return printed.stdout.strip()

    def __enter__(self):
        self._folder = tempfile.TemporaryDirectory(prefix="mcpo-bench-")
        self._root = Path(self._folder.name)
        self._log = self._root / "bridge.log"
        try:
            self._launch()
            self._port = self._wait("a port", self._read_port)
            self._wait("a first call", self._serves)
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(self, kind, *_):
        if kind is not None:  # the run is lost, its fault is the one to tell
            self._kill()
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            status = self._process.wait(END)
        except subprocess.TimeoutExpired:
            self._kill()
            raise Fault(f"{self.name}: still running {END} s after SIGTERM") from None
        if status != 0:
            raise self._ended(status)
        self._folder.cleanup()

    def connect(self):
        return HttpLine(self.name, self._port, PATH)

    def _launch(self):
        server = {"command": COMMAND[0], "args": COMMAND[1:], "mode": "shared"}
        config = self._root / "mcp-servers.json"
        config.write_text(json.dumps({"mcpServers": {"child": server}}))
        # Nobody's settings but these, and everything else as it is by default.
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("MCPO_", "RUST_"))}
        settings = {
            "MCPO_CONFIG_FILE": str(config),
            "MCPO_JOBS_DIR": str(self._root / "jobs"),
            "MCPO_TOOLS_DIR": str(self._root / "tools"),
            "MCPO_HOST": "127.0.0.1",
            "MCPO_PORT": "0",
        }
        command = [self._binary, "serve", "--port-file", self._root / "port"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, env=inherited | settings, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def _read_port(self):
        """The file holds `127.0.0.1:41234` and a line end, which is written last."""
        try:
            text = (self._root / "port").read_text()
        except FileNotFoundError:
            return None
        return int(text.rsplit(":", 1)[-1]) if text.endswith("\n") else None

    def _serves(self):
        line = HttpLine(self.name, self._port, PATH)
        try:
            status, _, body = line.post("are you there?")
        finally:
            line.close()
        if status not in (200, NOT_YET):
            raise Fault(f"{self.name}: {PATH}: {status} {body[:500].decode(errors='replace')}{self._tail()}")
        return status == 200 or None

    def _wait(self, what, look):
        end = time.monotonic() + START
        while time.monotonic() < end:
            if (status := self._process.poll()) is not None:
                raise self._ended(status)
            if (found := look()) is not None:
                return found
            time.sleep(0.02)
        raise Fault(f"{self.name}: no {what.removeprefix('a ')} within {START} s{self._tail()}")

    def _ended(self, status):
        return Fault(f"{self.name}: ended with {status}{self._tail()}")

    def _tail(self):
        lines = self._log.read_text(errors="replace").splitlines()[-LOG_SHOWN:]
        return "\n".join(["; its log ends with", *lines]) if lines else "; its log is empty"

    def _kill(self):
        """SIGTERM first even here: a killed bridge cannot end its children."""
        process = getattr(self, "_process", None)
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(END)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._folder.cleanup()


class McpLegacy(Bridge):
    name = "mcp-legacy"
    about = f"POST {MCP}, the bridge with a session"

    def connect(self):
        return LegacyLine(self.name, self._port, MCP)


class McpModern(Bridge):
    name = "mcp-modern"
    about = f"POST {MCP}, the bridge as 2026-07-28 has it, translated for the child"

    def connect(self):
        return ModernLine(self.name, self._port, MCP)
