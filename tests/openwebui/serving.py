"""The real Open WebUI and a real bridge, each on a free port and in folders of their own."""

import base64
import hmac
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
START, END = 180, 30  # seconds to be ready, and to end
KEY = "a-key-of-the-bridge"
SECRET = "only-for-tests"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def unpadded(bytes):
    return base64.urlsafe_b64encode(bytes).rstrip(b"=").decode()


class Process:
    """A program with its output in a log."""

    def __init__(self, name, command, env, folder, ready):
        self._name, self._log = name, folder / f"{name}.log"
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                command, env=env, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        try:
            self._wait(ready)
        except BaseException:
            self.close()
            raise

    def log(self):
        return self._log.read_text(errors="replace")

    def _wait(self, ready):
        end = time.monotonic() + START
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise SystemExit(f"{self._name} ended with {self._process.returncode}: {self.log()[-3000:]}")
            try:
                urllib.request.urlopen(ready, timeout=5).close()
                return
            except OSError:
                time.sleep(0.2)
        raise SystemExit(f"{self._name} was not ready within {START} s: {self.log()[-3000:]}")

    def close(self):
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(END)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


class Bridge(Process):
    """In front of the given servers, and friends with Open WebUI at `openwebui`."""

    def __init__(self, binary, servers, port, openwebui, folder, **settings):
        self.url = f"http://127.0.0.1:{port}"
        config = folder / "mcp-servers.json"
        config.write_text(json.dumps({"mcpServers": servers}))
        env = os.environ | {
            "MCPO_PORT": str(port),
            "MCPO_BASE_URL": self.url,
            "MCPO_CONFIG_FILE": str(config),
            "MCPO_JOBS_DIR": str(folder / "jobs"),
            "MCPO_TOOLS_DIR": str(ROOT / ".run/tools"),
            "MCPO_API_KEY": KEY,
            "MCPO_TRUSTED_PROXIES": "none",
            "MCPO_START_TIMEOUT": "180",
            "MCPO_OPENWEBUI_URL": openwebui,
        }
        super().__init__("bridge", [str(binary), "serve"], env | settings, folder, f"{self.url}/health/ready")


class OpenWebUi(Process):
    """With these connections and this model, and an administrator."""

    def __init__(self, port, model, connections, folder):
        self.url = f"http://127.0.0.1:{port}"
        env = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        env |= {
            "DATA_DIR": str(folder / "openwebui"),
            "WEBUI_SECRET_KEY": SECRET,
            "FROM_INIT_PY": "true",
            "OPENAI_API_BASE_URLS": model,
            "OPENAI_API_KEYS": "none",
            "ENABLE_OLLAMA_API": "false",
            "TOOL_SERVER_CONNECTIONS": json.dumps(connections),
            "ENABLE_FORWARD_USER_INFO_HEADERS": "true",
            "BYPASS_MODEL_ACCESS_CONTROL": "true",
            "RAG_EMBEDDING_ENGINE": "openai",
            "OFFLINE_MODE": "true",
            "HF_HUB_OFFLINE": "1",
            "ENABLE_VERSION_UPDATE_CHECK": "false",
            "ANONYMIZED_TELEMETRY": "false",
        }
        (folder / "openwebui").mkdir()
        python = ROOT / ".tools/openwebui/bin/python"
        serve = [str(python), "-m", "uvicorn", "open_webui.main:app", "--host", "127.0.0.1", "--port", str(port)]
        super().__init__("openwebui", serve, env, folder, f"{self.url}/health")
        who = {"name": "Admin", "email": "admin@example.com", "password": "pass-word-1"}
        self.admin = User(self.url, post(f"{self.url}/api/v1/auths/signup", who))

    def automation_of(self, user):
        """The token that it gives to an automation of this user's."""
        head, claims, _ = user.token.split(".")
        claims = json.loads(base64.urlsafe_b64decode(claims + "==")) | {"typ": "automation"}
        signed = f"{head}.{unpadded(json.dumps(claims).encode())}"
        return f"{signed}.{unpadded(hmac.digest(SECRET.encode(), signed.encode(), 'sha256'))}"

    def add_user(self, name):
        who = {"name": name, "email": f"{name}@example.com", "password": "pass-word-1", "role": "user"}
        return User(self.url, self.admin.post("/api/v1/auths/add", who))


class Refused(Exception):
    """An answer that says no."""

    def __init__(self, status, body):
        super().__init__(f"{status}: {body[:500]}")
        self.status = status


def send(method, url, body=None, headers=None):
    request = urllib.request.Request(url, body, headers or {}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.read()
    except urllib.error.HTTPError as refused:
        with refused:
            raise Refused(refused.code, refused.read().decode(errors="replace")) from None


def post(url, value, headers=None):
    body = send("POST", url, json.dumps(value).encode(), {"Content-Type": "application/json"} | (headers or {}))
    return json.loads(body)


class User:
    """Somebody who is signed in."""

    def __init__(self, url, account):
        self._url, self.id, self.token = url, account["id"], account["token"]
        self._headers = {"Authorization": f"Bearer {self.token}"}

    def get(self, path):
        return json.loads(self.fetch(path))

    def fetch(self, path):
        return send("GET", self._url + path, headers=self._headers)

    def post(self, path, value):
        return post(self._url + path, value, self._headers)

    def upload(self, name, content):
        """Attaches a file as the browser does; gives what a message's `files` has for it."""
        line = "the-boundary"
        head = f'--{line}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
        headers = self._headers | {"Content-Type": f"multipart/form-data; boundary={line}"}
        body = head + content + f"\r\n--{line}--\r\n".encode()
        stored = json.loads(send("POST", f"{self._url}/api/v1/files/?process=false", body, headers))
        file = {"type": "file", "id": stored["id"], "url": stored["id"], "name": name, "size": len(content)}
        return file | {"file": stored, "status": "uploaded", "collection_name": "", "error": ""}
