"""mcpo and the bridge, side by side in front of the same servers."""

import base64
import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests/fixtures"
MCPO = ROOT / ".tools/mcpo/bin/mcpo"
BRIDGE = ROOT / "target/debug/mcpo-bridge"
START, CALL = 120, 30  # seconds for a side to be ready, and for one answer
# Who calls, and in which chat: mcpo looks at neither.
CHAT = {"X-OpenWebUI-User-Id": "alice", "X-OpenWebUI-Chat-Id": "c1"}


def fixture(*arguments, **more):
    """A server that both sides start."""
    script = str(FIXTURES / "every_kind_server.py")
    return {"command": "python3", "args": [script, *arguments], **more}


@dataclass
class Setup:
    """One way to start both: mcpo's command line, which the bridge gets as it is."""

    name: str
    config: dict | None = None
    flags: list = field(default_factory=list)
    command: list | None = None
    ready: str = "/openapi.json"  # answers 200, 401 or 403 once calls are taken
    headers: dict = field(default_factory=dict)
    tls: bool = False


@dataclass
class Answer:
    status: int
    headers: dict
    body: bytes

    def json(self):
        try:
            return json.loads(self.body)
        except ValueError:
            return self.body.decode(errors="replace")[:200]


class Side:
    """One of the two, running."""

    def __init__(self, name, port, tls):
        self.name, self.port, self.tls = name, port, tls

    def ask(self, method, path, body=None, headers=None):
        if self.tls:
            trust = ssl._create_unverified_context()
            connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=CALL, context=trust)
        else:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=CALL)
        with contextlib.closing(connection):
            connection.request(method, path, body=body, headers=headers or {})
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def certificate(folder):
    """A certificate for localhost, made by openssl."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
        + ["-keyout", key, "-out", cert],
        check=True,
        capture_output=True,
    )
    return ["--ssl-certfile", str(cert), "--ssl-keyfile", str(key)]


@contextlib.contextmanager
def running(setup):
    """Both sides of a setup, ready to be asked."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mcpo-compare-")))
        flags = list(setup.flags)
        if setup.config is not None:
            (folder / "config.json").write_text(json.dumps({"mcpServers": setup.config}))
            flags += ["--config", str(folder / "config.json")]
        if setup.tls:
            flags += certificate(folder)
        sides = []
        for name, program in (("mcpo", [MCPO]), ("bridge", [BRIDGE])):
            port = free_port()
            line = [*program, "--host", "127.0.0.1", "--port", str(port), *flags]
            line += ["--", *setup.command] if setup.command else []
            (folder / name).mkdir()
            log = folder / f"{name}.log"
            with log.open("wb") as output:
                process = subprocess.Popen(
                    line,
                    cwd=folder / name,
                    env=environment(folder),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            stack.callback(end, process)
            side = Side(name, port, setup.tls)
            wait(side, setup, process, log)
            sides.append(side)
        yield sides


@contextlib.contextmanager
def upstream(setup, config):
    """The setup with a real remote server: another bridge in front of `config`."""
    with tempfile.TemporaryDirectory(prefix="mcpo-upstream-") as name:
        folder, port = Path(name), free_port()
        (folder / "config.json").write_text(json.dumps({"mcpServers": config}))
        line = [BRIDGE, "--port", str(port), "--config", folder / "config.json"]
        log = folder / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(line, env=environment(folder), stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            wait(Side("upstream", port, False), Setup("upstream", ready="/kinds/openapi.json"), process, log)
            url = f"http://127.0.0.1:{port}"
            filled = json.loads(json.dumps([setup.config, setup.command]).replace("{UPSTREAM}", url))
            yield replace(setup, config=filled[0], command=filled[1])
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def environment(folder):
    tools = f"{os.environ['PATH']}:{ROOT / '.tools/bin'}"
    own = {"MCPO_JOBS_DIR": str(folder / "jobs"), "MCPO_TOOLS_DIR": str(ROOT / ".run/tools")}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MCPO_")}
    return kept | own | {"PATH": tools, "PYTHONDONTWRITEBYTECODE": "1"}


def wait(side, setup, process, log):
    until = time.monotonic() + START
    while time.monotonic() < until:
        if process.poll() is None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if side.ask("GET", setup.ready, headers=setup.headers).status in (200, 401, 403):
                    return
        else:
            break
        time.sleep(0.1)
    said = log.read_text(errors="replace")[-3000:]
    raise SystemExit(f"{side.name} did not start for the setup '{setup.name}':\n{said}")


def end(process):
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    # Servers that mcpo left behind.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def basic(password):
    return {"Authorization": "Basic " + base64.b64encode(f"anyone:{password}".encode()).decode()}
