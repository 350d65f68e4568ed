"""Starts and ends a bridge for the drivers below scripts/ and tests/. Standard library only."""

import contextlib
import http.client
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests/fixtures"
BINARY = ROOT / "target/release/mcpo-bridge"
START, END = 120, 120  # seconds to be ready, and to end
SHOWN = 2000  # letters of a log


class Failed(Exception):
    """Something could not be measured."""


def fixture(name, *arguments, **more):
    """The entry of a test server."""
    return {"command": sys.executable, "args": [str(FIXTURES / name), *map(str, arguments)], **more}


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Bridge:
    """A bridge with these servers on a free port, with its files in `folder` and no settings but these.

    As a context manager it is ready inside of the block, and leaves no process behind. `files` is its limit
    on open files. It keeps its port when it is started again.
    """

    def __init__(self, binary, folder, servers, settings=None, files=None):
        self.folder, self.port, self.process = Path(folder), free_port(), None
        self.config, self.log = self.folder / "mcp-servers.json", self.folder / "bridge.log"
        self._binary, self._files = binary, files
        self._settings = {
            "MCPO_HOST": "127.0.0.1",
            "MCPO_PORT": str(self.port),
            "MCPO_CONFIG_FILE": str(self.config),
            "MCPO_JOBS_DIR": str(self.folder / "jobs"),
            "MCPO_TOOLS_DIR": str(self.folder / "tools"),
            **(settings or {}),
        }
        self.write_config(servers)

    def write_config(self, servers):
        """Replaces the config file in one step, as an editor does."""
        beside = self.config.with_suffix(".new")
        beside.write_text(json.dumps({"mcpServers": servers}), encoding="utf-8")
        beside.replace(self.config)

    def launch(self):
        """Starts it, and waits for nothing."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MCPO_")}
        limit = self._files and (self._files, self._files)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [self._binary, "serve"],
                env=kept | self._settings,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # what it leaves behind can be ended with its group
                preexec_fn=limit and (lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limit)),
            )

    def wait(self):
        """Waits until it takes calls."""
        ends = time.monotonic() + START
        while not self._is_ready():
            if self.process.poll() is not None or time.monotonic() > ends:
                raise Failed("the bridge did not start: " + self.log.read_text(errors="replace")[-SHOWN:])
            time.sleep(0.05)

    def end(self):
        """Ends it; gives its exit code, or `None` if it had to be killed."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(END)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return None

    def clear(self):
        """Kills what is left of its process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def __enter__(self):
        self.launch()
        try:
            self.wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        try:
            self.end()
        finally:
            self.clear()

    def _is_ready(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/health/ready")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
