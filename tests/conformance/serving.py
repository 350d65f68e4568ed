"""Where the suite finds the fixture: behind a bridge, or on the SDK's own HTTP."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
PYTHON = HERE.parents[1] / ".tools/fixture/bin/python"
START, END = 60, 30  # seconds for a server to be ready, and to end
FIXTURE = {"command": str(PYTHON), "args": [str(HERE / "fixture_server.py")]}
LEGACY_FIXTURE = FIXTURE | {"args": [*FIXTURE["args"], "--legacy"]}
MODERN_FIXTURE = FIXTURE | {"args": [*FIXTURE["args"], "--modern"]}


def with_names(fixture):
    return {"command": fixture["command"], "args": [*fixture["args"], "--bare"], "mode": "shared"}


BRIDGE_SERVERS = {  # shared: the suite's clients say nothing that would tell one chat from another
    "dual": FIXTURE | {"mode": "shared"},
    "legacy": LEGACY_FIXTURE | {"mode": "shared"},
    "dual-stateful": FIXTURE | {"mode": "stateful"},
    "modern": MODERN_FIXTURE | {"mode": "shared"},
    "modern-stateful": MODERN_FIXTURE | {"mode": "stateful"},
}
# Behind /mcp a tool is called {server}_{tool}: with this fixture's names, as the suite knows them.
BESIDE = {"command": "python3", "args": [str(HERE.parent / "fixtures/echo_server.py")], "mode": "shared"}
ALL_SERVERS = {
    "all": {"test": with_names(FIXTURE), "beside": BESIDE},
    "all-legacy": {"beside": BESIDE, "test": with_names(LEGACY_FIXTURE)},
}


class Fault(Exception):
    """What stops a run, in words for the one who started it."""


class Serving:
    """Processes that live as long as the `with` block, their output in a log each."""

    def __init__(self, folder):
        self._folder = folder
        self._processes = []

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_):
        self._end()

    def launch(self, name, command, env=None):
        log = self._folder / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        self._processes.append((name, process, log))

    def wait(self, what, look):
        end = time.monotonic() + START
        while time.monotonic() < end:
            for name, process, log in self._processes:
                if process.poll() is not None:
                    tail = log.read_text(errors="replace")[-2000:]
                    raise Fault(f"{name} ended with {process.returncode}: {tail}")
            if (found := look()) is not None:
                return found
            time.sleep(0.05)
        raise Fault(f"{what} within {START} s did not come; logs: {self._folder}")

    def _end(self):
        for _, process, _ in self._processes:
            process.send_signal(signal.SIGTERM)
        for _, process, _ in self._processes:
            try:
                process.wait(END)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Bridge(Serving):
    """All fixtures behind one bridge, on a port of its choice."""

    def __init__(self, binary, folder, servers=BRIDGE_SERVERS):
        super().__init__(folder)
        self._binary = binary
        self._servers = servers

    def url(self, server):
        path = "/mcp" if server in ALL_SERVERS else f"/mcp/{server}"
        return f"http://127.0.0.1:{self._port}{path}"

    def start(self):
        if not self._binary.exists():
            raise Fault(f"{self._binary} is not there: build it with `make build`")
        config = self._folder / "mcp-servers.json"
        config.write_text(json.dumps({"mcpServers": self._servers}, indent=1))
        # Nobody's settings but these, and everything else as it is by default.
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("MCPO_", "RUST_"))}
        settings = {
            "MCPO_CONFIG_FILE": str(config),
            "MCPO_JOBS_DIR": str(self._folder / "jobs"),
            "MCPO_TOOLS_DIR": str(self._folder / "tools"),
            "MCPO_HOST": "127.0.0.1",
            "MCPO_PORT": "0",
        }
        port_file = self._folder / "port"
        port_file.unlink(missing_ok=True)  # of an earlier run into the same folder
        self.launch("bridge", [self._binary, "serve", "--port-file", port_file], inherited | settings)
        self._port = self.wait("the bridge's port", lambda: read_port(port_file))
        for server in self._servers:
            document = f"http://127.0.0.1:{self._port}/mcpo/{server}/openapi.json"
            self.wait(f"the catalogue of {server}", lambda: answers(document))


class Direct(Serving):
    """The fixtures on the SDK's own Streamable HTTP: what the suite says of them without a bridge."""

    def start(self):
        self._ports = {}
        for server, fixture in (("dual", FIXTURE), ("legacy", LEGACY_FIXTURE)):
            port = self._ports[server] = free_port()
            self.launch(server, [fixture["command"], *fixture["args"], "--http", str(port)])
            self.wait(f"the port of {server}", lambda: connects(port))

    def url(self, server):
        return f"http://127.0.0.1:{self._ports[server]}/mcp"


def read_port(path):
    """The file holds `127.0.0.1:41234` and a line end, which is written last."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    return int(text.rsplit(":", 1)[-1]) if text.endswith("\n") else None


def answers(url):
    try:
        with urllib.request.urlopen(url, timeout=START):
            return True
    except urllib.error.HTTPError as refusal:
        if refusal.code == 503:  # the catalogue is still being learnt
            return None
        raise Fault(f"{url} is answered with {refusal.code}") from None
    except OSError:
        return None


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def connects(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return None
    return True
