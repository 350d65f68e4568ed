"""The entries of docs/servers.md through a real bridge: files made, downloaded and opened.

The page is the only source of the entries: its JSON blocks are read from it, and the Japanese page must
have the same ones.
"""

import contextlib
import gzip
import http.server
import io
import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import docx
import openpyxl
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
# As of a checkout far down in somebody's home folder: sockets below it would be too long.
DEEP = "home/anna.of.the.accounting.department/projects/2026/tools/mcpo-bridge/.run"
PASSED = ("UV_", "PIP_", "NPM_CONFIG_", "SSL_CERT_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "NODE_EXTRA")
START = 300  # seconds: packages are fetched


def entries(page):
    text = (ROOT / "docs" / page).read_text()
    found = {}
    for block in re.findall(r"```json\n(.*?)```", text, re.S):
        found.update(json.loads(block)["mcpServers"])
    return found


class Bridge:
    def __init__(self, folder, servers):
        self.folder = folder / DEEP
        self.folder.mkdir(parents=True)
        config = self.folder / "mcp-servers.json"
        config.write_text(json.dumps({"mcpServers": servers}))
        binary = os.environ.get("MCPO_TEST_BRIDGE", ROOT / "target/debug/mcpo-bridge")
        passed = {k: v for k, v in os.environ.items() if k.upper().startswith(PASSED) or k in ("PATH", "HOME")}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        variables = {
            "MCPO_HOST": "127.0.0.1",
            "MCPO_PORT": str(port),
            "MCPO_BASE_URL": self.url,
            "MCPO_CONFIG_FILE": str(config),
            "MCPO_JOBS_DIR": str(self.folder / "jobs"),
            "MCPO_TOOLS_DIR": str(self.folder / "tools"),
            "MCPO_START_TIMEOUT": str(START),
            "MCPO_TIMEOUT": str(START),
            "MCPO_POOL_MAX": "0",
        }
        self.log = open(self.folder / "bridge.log", "wb")
        self.process = subprocess.Popen([binary, "serve"], env={**passed, **variables}, stdout=self.log, stderr=self.log)

    def wait(self, servers):
        until = time.monotonic() + START
        while time.monotonic() < until:
            with contextlib.suppress(OSError):
                health = json.loads(self.get("/health"))
                states = {name: health["servers"].get(name, {}) for name in servers}
                if all(state.get("status") == "ready" for state in states.values()):
                    return
            if self.process.poll() is not None:
                break
            time.sleep(0.5)
        sys.exit(f"not every server was learnt:\n{self.get('/health').decode()}\n{self.words()}")

    def words(self):
        return (self.folder / "bridge.log").read_text()[-4000:]

    def get(self, path):
        with urllib.request.urlopen(urllib.parse.urljoin(self.url, path), timeout=60) as answer:
            return answer.read()

    def headers(self):
        return {"X-OpenWebUI-User-Id": "anna", "X-OpenWebUI-Chat-Id": "servers"}

    def call(self, server, tool, **arguments):
        body = json.dumps(arguments).encode()
        headers = {**self.headers(), "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/mcpo/{server}/{tool}", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=START) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            sys.exit(f"{server} {tool}: {error.code} {error.read().decode()}\n{self.words()}")

    def file(self, answer, end):
        """The bytes behind the link of the file whose name ends so."""
        assert isinstance(answer, dict) and "files" in answer, f"no file in {answer}"
        links = [file["url"] for file in answer["files"] if file["name"].endswith(end)]
        assert len(links) == 1, f"{end}: {answer['files']}"
        return self.get(links[0])

    def upload(self, name, data):
        head = f'--x\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
        headers = {**self.headers(), "Content-Type": "multipart/form-data; boundary=x"}
        request = urllib.request.Request(f"{self.url}/files", head + data + b"\r\n--x--\r\n", headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    def end(self):
        self.process.terminate()
        self.process.wait(90)
        self.log.close()


@contextlib.contextmanager
def website():
    """A page with a picture's worth of text and something to download."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            data = b"month,sales\nJan,100\n" if self.path == "/data.csv" else b"<h1>Sales</h1><a href=/data.csv download>data</a>"
            self.send_response(200)
            self.send_header("Content-Type", "text/csv" if self.path == "/data.csv" else "text/html")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def playwright(bridge):
    with website() as url:
        bridge.call("playwright", "browser_navigate", url=url)
        shot = bridge.call("playwright", "browser_take_screenshot", scale="css")
        with Image.open(io.BytesIO(bridge.file(shot, ".png"))) as picture:
            assert picture.width > 300, picture.size
        named = bridge.call("playwright", "browser_take_screenshot", filename="shot.png", scale="css")
        Image.open(io.BytesIO(bridge.file(named, "shot.png"))).verify()
        seen = str(bridge.call("playwright", "browser_snapshot"))
        link = re.search(r'link \\*"data\\*".*?\[ref=(\w+)\]', seen)
        assert link, seen
        made = bridge.call("playwright", "browser_click", element="data", target=link[1])
        assert bridge.file(made, "data.csv").startswith(b"month,sales"), made
        bridge.call("playwright", "browser_close")


def markitdown(bridge):
    book = openpyxl.Workbook()
    book.active.append(["month", "sales"])
    data = io.BytesIO()
    book.save(data)
    bridge.upload("sales 1.xlsx", data.getvalue())
    for uri in ("sales 1.xlsx", "file:///sales%201.xlsx"):
        text = str(bridge.call("markitdown", "convert_to_markdown", uri=uri))
        assert "| month | sales |" in text, text


def filesystem(bridge):
    made = bridge.call("filesystem", "write_file", path="notes.txt", content="売上")
    assert bridge.file(made, "notes.txt").decode() == "売上"
    assert "notes.txt" in str(bridge.call("filesystem", "list_directory", path="."))


def everything(bridge):
    data = "data:text/plain,hello"
    made = bridge.call("everything", "gzip-file-as-resource", name="hello.gz", data=data, outputType="resource")
    assert gzip.decompress(bridge.file(made, "hello.gz")) == b"hello"


def sqlite(bridge):
    bridge.call("sqlite", "create_table", query="create table sales(month text, amount int)")
    made = bridge.call("sqlite", "write_query", query="insert into sales values ('Jan', 100)")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "data.db")
        copy.write_bytes(bridge.file(made, "data.db"))
        with contextlib.closing(sqlite3.connect(copy)) as database:
            assert database.execute("select * from sales").fetchall() == [("Jan", 100)]


def word(bridge):
    bridge.call("word", "create_document", filename="report.docx", title="Report")
    made = bridge.call("word", "add_paragraph", filename="report.docx", text="Sales grew.")
    document = docx.Document(io.BytesIO(bridge.file(made, "report.docx")))
    assert "Sales grew." in [paragraph.text for paragraph in document.paragraphs]


TESTS = {test.__name__: test for test in (playwright, markitdown, filesystem, everything, sqlite, word)}


def main(wanted):
    known = entries("servers.md")
    assert known == entries("servers.ja.md"), "docs/servers.md and docs/servers.ja.md have different entries"
    assert set(known) == set(TESTS), f"entries without a test, or tests without an entry: {set(known) ^ set(TESTS)}"
    wanted = wanted or list(TESTS)
    if "playwright" in wanted:
        # The page says where Debian's package has it.
        chromium = shutil.which("chromium") or shutil.which("chromium-browser")
        assert chromium, "Chromium is missing: apt-get install chromium"
        args = known["playwright"]["args"]
        known["playwright"]["args"] = [chromium if arg == "/usr/bin/chromium" else arg for arg in args]
    with tempfile.TemporaryDirectory(prefix="mcpo-servers-") as folder:
        bridge = Bridge(Path(folder), {name: known[name] for name in wanted})
        try:
            bridge.wait(wanted)
            for name in wanted:
                TESTS[name](bridge)
                print(f"{name}: ok", flush=True)
        finally:
            bridge.end()


if __name__ == "__main__":
    main(sys.argv[1:])
