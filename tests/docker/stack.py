"""One Compose project of its own: a copy of the checkout, names and ports that nobody else has."""

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
from pathlib import Path

from web import request, user_token, wait_for

FOLDER = Path(os.environ["MCPO_TEST_FOLDER"])
CLONE = FOLDER / "clone"
TAG = os.environ["MCPO_IMAGE_TAG"]

# Fixed names would collide with a stack that runs here; nothing else of the services changes.
NAMES = """
services:
  mcpo-bridge: {container_name: !reset null}
  openwebui: {container_name: !reset null}
"""
# Asked every two seconds, because the design's 30 s make each start half a minute longer.
HEALTH = """
services:
  mcpo-bridge: {healthcheck: {interval: 2s}}
  openwebui: {healthcheck: {interval: 2s}}
"""
FIXTURES = """
services:
  mcpo-bridge: {volumes: ["./tests/fixtures:/app/fixtures:ro"]}
"""
COUNTER = {"command": "python3", "args": ["/app/fixtures/echo_server.py"]}


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def docker(*arguments, check=True):
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=300, check=False)
    if check and done.returncode:
        raise AssertionError(f"docker {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def inspect(thing):
    return json.loads(docker("inspect", thing))[0]


def result(answer):
    """The tool's own, whatever the bridge put around it."""
    return answer["result"] if isinstance(answer, dict) and "result" in answer else answer


class Stack:
    """`with Stack("name") as stack:`; at the end nothing of it is left."""

    def __init__(self, name, files=("docker-compose.yml",), overrides=(NAMES, HEALTH), **variables):
        self.project = f"mcpo-{TAG}-{name}"
        self.folder, self.source = FOLDER / name, CLONE
        self.files = list(files)
        self.overrides = overrides
        self.webui_port, self.bridge_port = free_port(), free_port()
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("COMPOSE_", "MCPO_", "OPENWEBUI_"))}
        # How packages and authorities are found is the machine's, and stays.
        kept = {k: v for k, v in os.environ.items() if k.startswith("MCPO_BUILD_")}
        self.env = {
            **clean,
            **kept,
            "MCPO_IMAGE_TAG": TAG,
            "COMPOSE_PROJECT_NAME": self.project,
            "OPENWEBUI_PORT": str(self.webui_port),
            "MCPO_PUBLISHED_PORT": str(self.bridge_port),
            **variables,
        }

    def of(self, source):
        """Of these files in place of a checkout's."""
        self.source = source
        return self

    def __enter__(self):
        shutil.copytree(self.source, self.folder)
        for number, text in enumerate(self.overrides):
            (self.folder / f"test-{number}.yml").write_text(text)
            self.files.append(f"test-{number}.yml")
        self.env["COMPOSE_FILE"] = ":".join(self.files)
        return self

    def __exit__(self, *_):
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "5", check=False)
        # Containers may have written as users whose files are not ours to remove.
        docker("run", "--rm", "--user", "0", "-v", f"{self.folder}:/x", f"mcpo-bridge:{TAG}",
               "find", "/x", "-mindepth", "1", "-delete", check=False)  # fmt: skip
        shutil.rmtree(self.folder, ignore_errors=True)
        left = docker("ps", "-aq", "--filter", f"label=com.docker.compose.project={self.project}")
        assert not left, f"containers are left of {self.project}: {left}"

    # ---- docker compose, as people type it ----

    def run(self, *arguments, check=True, timeout=900, env=None):
        done = subprocess.run(
            ["docker", "compose", *arguments],
            cwd=self.folder,
            env={**self.env, **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(
                f"docker compose {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}{done.stderr}"
                f"{self.last_words()}"
            )
        return done

    def compose(self, *arguments, **options):
        return self.run(*arguments, **options).stdout.strip()

    def last_words(self):
        logs = ["docker", "compose", "logs", "--no-color", "--tail=15"]
        return subprocess.run(logs, cwd=self.folder, env=self.env, capture_output=True, text=True, check=False).stdout

    def in_background(self, *arguments):
        return subprocess.Popen(
            ["docker", "compose", *arguments],
            cwd=self.folder, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip

    def until_interrupted(self, *arguments, seen):
        """Runs what only Ctrl+C ends, until its output shows something; returns the output."""
        process = self.in_background(*arguments)
        limit = threading.Timer(300, os.killpg, (process.pid, signal.SIGKILL))
        limit.start()
        output = ""
        try:
            for line in process.stdout:
                output += line
                if seen in line:
                    break
            os.killpg(process.pid, signal.SIGINT)
            output += process.communicate(timeout=180)[0]
        finally:
            limit.cancel()
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        assert seen in output, f"{arguments}: {seen!r} was never seen in:\n{output}"
        return output

    def exec(self, service, *arguments, **options):
        return self.compose("exec", "-T", service, *arguments, **options)

    def ids(self, service):
        return self.compose("ps", "-aq", "--no-trunc", service).split()

    def container(self, service):
        (only,) = self.ids(service)
        return inspect(only)

    def rows(self, *arguments):
        return [json.loads(line) for line in self.compose("ps", "-a", "--format", "json", *arguments).splitlines()]

    def health(self, service):
        """Of its only container; while one replaces another, nothing."""
        rows = self.rows(service)
        return rows[0]["Health"] if len(rows) == 1 else ""

    def wait_healthy(self, service):
        wait_for(f"{service} is healthy", lambda: self.health(service) == "healthy", 120)

    # ---- the bridge ----

    def configure(self, **more):
        """Writes config/mcp-servers.json: the example, and more servers."""
        config = json.loads((self.folder / "mcp-servers.json.example").read_text())
        config["mcpServers"].update(more)
        self.write_config(config)

    def write_config(self, config):
        (self.folder / "config/mcp-servers.json").write_text(json.dumps(config, indent=2))

    @property
    def bridge(self):
        return f"http://localhost:{self.bridge_port}"

    def credentials(self, user, chat):
        """What Open WebUI sends with a call."""
        key = self.exec("mcpo-bridge", "cat", "/run/mcpo/api-key").partition(":")[2]
        secret = self.exec("mcpo-bridge", "cat", "/run/mcpo/jwt-secret")
        return {
            "Authorization": f"Bearer {key}",
            "X-OpenWebUI-User-Jwt": user_token(user, secret),
            "X-OpenWebUI-Chat-Id": chat,
        }

    def chat(self, user="hanako", chat="c1"):
        """Calls through the published port: `call(server, tool, **arguments)`."""
        headers = self.credentials(user, chat)

        def call(server, tool, **arguments):
            url = f"{self.bridge}/mcpo/{server}/{tool}"
            answer = request("POST", url, arguments, headers)
            assert answer.status == 200, f"{server} {tool}: {answer.status} {answer.body!r}"
            return answer.json()

        return call

    def inner_chat(self, user="hanako", chat="c1"):
        """The same from Open WebUI's container, where no port is published."""
        headers = [f"-H{name}: {value}" for name, value in self.credentials(user, chat).items()]

        def call(server, tool, **arguments):
            url = f"http://mcpo-bridge:8080/mcpo/{server}/{tool}"
            curl = ["curl", "-sS", "--fail-with-body", "-m", "120", "-HContent-Type: application/json", *headers]
            said = self.exec("openwebui", *curl, "-d", json.dumps(arguments), url)
            return json.loads(said)

        return call
