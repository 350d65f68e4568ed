"""Real chats in the real Open WebUI, through a real bridge: `make test-openwebui`."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from chat import Chat, results, text  # noqa: E402
from model import Model  # noqa: E402
from serving import KEY, ROOT, Bridge, OpenWebUi, Refused, User, free_port, send  # noqa: E402

ECHO = {"command": "python3", "args": [str(ROOT / "tests/fixtures/echo_server.py")]}
EVERYBODY = [{"principal_type": "user", "principal_id": "*", "permission": "read"}]
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
LINK = re.compile(r"http://127\.0\.0\.1:\d+/files/[^\s)\"\\]+")


def connection(kind, bridge, server, id, grants=EVERYBODY, session=True):
    """As an administrator fills it in."""
    door = "mcp" if kind == "mcp" else "mcpo"
    return {
        "type": kind, "url": f"{bridge}/{door}/{server}", "path": "openapi.json", "spec_type": "url", "spec": "",
        "auth_type": "session" if session else "bearer", "key": "" if session else KEY,
        "headers": {"X-MCPO-Key": KEY} if session else {},
        "info": {"id": id, "name": id, "description": f"{server} of the bridge"},
        "config": {"enable": True, "function_name_filter_list": "", "access_grants": grants},
    }


def servers():
    example = json.loads((ROOT / "mcp-servers.json.example").read_text())["mcpServers"]
    echo = ECHO | {"embed": ["image", "html"]}
    return {"echo": echo, "excel": example["excel"], "powerpoint": example["powerpoint"]}


class Setup:
    """Everything, once for all tests."""

    def __init__(self):
        binary = Path(os.environ.get("MCPO_BINARY", ROOT / "target/release/mcpo-bridge"))
        self._folder = tempfile.TemporaryDirectory(prefix="mcpo-openwebui-")
        folder = Path(self._folder.name)
        ports = free_port(), free_port()
        bridge, openwebui = (f"http://127.0.0.1:{port}" for port in ports)
        self.connections = [
            connection("openapi", bridge, "echo", "echo"),
            connection("openapi", bridge, "excel", "excel"),
            connection("openapi", bridge, "powerpoint", "powerpoint"),
            connection("openapi", bridge, "files", "files"),
            connection("openapi", bridge, "echo", "keyed", session=False),
            connection("openapi", bridge, "echo", "admins", grants=[]),
            connection("mcp", bridge, "echo", "echom"),
        ]
        self._running = [model := Model()]
        try:
            self.bridge = Bridge(binary, servers(), ports[0], openwebui, folder)
            self._running.append(self.bridge)
            self.openwebui = OpenWebUi(ports[1], model.url, self.connections, folder)
            self._running.append(self.openwebui)
            self._wait_until_learnt()
            self.admin = self.openwebui.admin
            self.alice, self.bob = (self.openwebui.add_user(name) for name in ("alice", "bob"))
        except BaseException:
            self.close()
            raise

    def _wait_until_learnt(self):
        end = time.monotonic() + 180
        for name in [*servers(), "files"]:
            while True:
                try:
                    send("GET", f"{self.bridge.url}/mcpo/{name}/openapi.json")
                    break
                except Refused:
                    if time.monotonic() > end:
                        raise SystemExit(f"{name} was not learnt: {self.bridge.log()[-3000:]}") from None
                    time.sleep(0.5)

    def close(self):
        for running in reversed(self._running):
            running.close()
        self._folder.cleanup()

    def jobs(self):
        return Path(self._folder.name) / "jobs"


def setUpModule():
    global it
    it = Setup()


def tearDownModule():
    it.close()


def echo(user, door="server:echo"):
    return Chat(user, [door])


def named(door, tool):
    """MCP tools have the connection's id in front."""
    return f"{door.rsplit(':', 1)[1]}_{tool}" if ":mcp:" in door else tool


DOORS = ["server:echo", "server:mcp:echom", "server:keyed"]


class Registration(unittest.TestCase):
    def test_both_types_are_verified(self):
        for wanted in (it.connections[0], it.connections[4], it.connections[-1]):
            answer = it.admin.post("/api/v1/configs/tool_servers/verify", wanted)
            self.assertTrue(answer, wanted["info"]["id"])

    def test_an_administrator_sees_all_and_a_user_what_is_granted(self):
        ids = {user: [tool["id"] for tool in user.get("/api/v1/tools/")] for user in (it.admin, it.alice)}
        everybodys = ["server:echo", "server:excel", "server:powerpoint", "server:keyed", "server:mcp:echom"]
        for id in everybodys:
            self.assertIn(id, ids[it.alice])
            self.assertIn(id, ids[it.admin])
        self.assertIn("server:admins", ids[it.admin])
        self.assertNotIn("server:admins", ids[it.alice])


class Isolation(unittest.TestCase):
    def test_each_chat_and_each_user_has_a_process_and_a_folder_of_his_own(self):
        for door in DOORS:
            with self.subTest(door):
                count, write = named(door, "counter"), named(door, "write_file")
                one, two, other = echo(it.alice, door), echo(it.alice, door), echo(it.bob, door)
                self.assertEqual(results(one.say((count, {}))), ["1"])
                said = one.say((count, {}), (write, {"name": "mine.txt", "content": "alice"}))
                self.assertEqual(results(said)[0], "2")
                listing = (named(door, "list_files"), {})
                self.assertIn("mine.txt", results(one.say(listing))[0])
                for chat in (two, other):
                    said = results(chat.say(listing, (count, {})))
                    self.assertNotIn("mine.txt", said[0])
                    self.assertEqual(said[1], "1")


class Files(unittest.TestCase):
    def download(self, said, name):
        links = [link for link in LINK.findall(said) if link.endswith(name)]
        self.assertTrue(links, said)
        folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        (folder / name).write_bytes(send("GET", links[-1]))
        return folder / name

    def verify(self, file, *conditions):
        needs = ["--with", "openpyxl==3.1.5", "--with", "python-pptx==1.0.2"]
        check = ["uv", "run", "--quiet", "--no-project", *needs, str(ROOT / "scripts/verify_files.py"), str(file)]
        done = subprocess.run([*check, *conditions], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_a_workbook_and_a_deck_are_made_linked_and_attached(self):
        chat = Chat(it.alice, ["server:excel", "server:powerpoint"])
        rows = [["Month", "Sales"], ["Jan", 100], ["Feb", 150]]
        answer = chat.say(
            ("create_workbook", {"path": "report.xlsx", "sheets": ["Sales"]}),
            ("write_range", {"path": "report.xlsx", "sheet": "Sales", "at": "A1", "rows": rows}),
        )
        self.verify(self.download(text(answer), "report.xlsx"), "--cell", "Sales!B3=150")
        self.assert_chip(answer, "report.xlsx")
        answer = chat.say(
            ("create_presentation", {"id": "deck"}),
            ("add_slide", {"presentation_id": "deck", "layout_index": 5, "title": "Sales"}),
            ("save_presentation", {"presentation_id": "deck", "file_path": "deck.pptx"}),
        )
        self.verify(self.download(text(answer), "deck.pptx"), "--slides", "1", "--text", "Sales")
        self.assert_chip(answer, "deck.pptx")

    def assert_chip(self, answer, name):
        chips = [file for file in answer.get("files") or [] if file["name"] == name]
        self.assertTrue(chips, answer.get("files"))
        content = it.alice.fetch(f"/api/v1/files/{chips[-1]['id']}/content")
        self.assertTrue(content.startswith(b"PK"), "an office file is a zip")

    def test_the_mcp_door_attaches_too_and_a_key_alone_does_not(self):
        for door, expected in (("server:mcp:echom", ["a.txt"]), ("server:keyed", [])):
            with self.subTest(door):
                answer = echo(it.bob, door).say((named(door, "write_file"), {"name": "a.txt", "content": "four"}))
                self.assertEqual([file["name"] for file in answer.get("files") or []], expected)
                self.assertTrue(LINK.search(text(answer)), text(answer))

    def test_an_attached_workbook_is_read_by_a_tool(self):
        make = "import openpyxl, sys; b = openpyxl.Workbook(); b.active.title = 'S'; b.active['A1'] = 'forty-two'; b.save(sys.argv[1])"
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "x.xlsx"
            run = ["uv", "run", "--quiet", "--no-project", "--with", "openpyxl==3.1.5", "python", "-c", make, str(file)]
            subprocess.run(run, check=True)
            attached = it.bob.upload("売上 2026.xlsx", file.read_bytes())
        chat = Chat(it.bob, ["server:excel"])
        wanted = ("read_range", {"path": "売上 2026.xlsx", "sheet": "S", "range": "A1:A1"})
        answer = chat.say(wanted, files=[attached])
        self.assertIn("forty-two", text(answer))
        self.assertFalse(answer.get("files"), "what the user attached is not attached again")


    def test_an_old_file_gets_a_fresh_link(self):
        chat = Chat(it.alice, ["server:echo", "server:files"])
        first = chat.say(("write_file", {"name": "a.txt", "content": "four"}))
        listed = results(chat.say(("list_files", {})))
        again = chat.say(("get_link", {"name": "a.txt"}))
        links = [LINK.findall(text(answer))[-1] for answer in (first, again)]
        self.assertNotEqual(*links)
        self.assertEqual(send("GET", links[1]), b"four")
        self.assertIn("a.txt", listed[0])


    def test_a_page_and_a_picture_show_in_the_chat(self):
        page = ("write_file", {"name": "page.html", "content": "<p>hello</p>"})
        picture = ("write_bytes", {"name": "dot.png", "base64": PIXEL})
        answer = echo(it.alice).say(page, picture)
        self.assertEqual(answer["embeds"], ["<p>hello</p>"])
        self.assertEqual(sorted(file["type"] for file in answer["files"]), ["file", "image"])


class Programs(unittest.TestCase):
    def test_an_api_key_and_an_automation_are_their_user(self):
        settings = it.admin.get("/api/v1/auths/admin/config")
        it.admin.post("/api/v1/auths/admin/config", settings | {"ENABLE_API_KEYS": True})
        key = it.admin.post("/api/v1/auths/api_key", {})["api_key"]
        for token in (key, it.openwebui.automation_of(it.admin)):
            program = User(it.openwebui.url, {"id": it.admin.id, "token": token})
            with self.assertRaises(Refused):
                program.get("/api/v1/auths/")
            for door in ("server:echo", "server:mcp:echom"):
                write = (named(door, "write_file"), {"name": "a.txt", "content": "four"})
                answer = echo(program, door).say(write)
                self.assertEqual([file["name"] for file in answer.get("files") or []], ["a.txt"])


class Progress(unittest.TestCase):
    def test_a_long_call_shows_its_progress_and_takes_it_away(self):
        for door in ("server:echo", "server:mcp:echom"):
            with self.subTest(door):
                answer = echo(it.alice, door).say((named(door, "slow_progress"), {"steps": 300}))
                lines = answer.get("statusHistory") or []
                self.assertTrue(lines, answer)
                self.assertTrue(lines[-1]["done"] and lines[-1]["hidden"], lines)


class Stop(unittest.TestCase):
    def test_a_stop_in_the_chat_cancels_the_child(self):
        for door in ("server:echo", "server:mcp:echom"):
            with self.subTest(door):
                chat = echo(it.alice, door)
                touch = f"begun-{door.replace(':', '-')}"
                chat.begin((named(door, "sleep"), {"seconds": 600, "touch": touch}))
                end = time.monotonic() + 60
                while not list(it.jobs().glob(f"*/work/{touch}")):
                    self.assertLess(time.monotonic(), end, "the call never arrived")
                    time.sleep(0.2)
                chat.stop()
                end, said = time.monotonic() + 30, []
                while said != ["[600]"] and time.monotonic() < end:
                    said = results(chat.say((named(door, "cancelled"), {})))
                    said = [re.sub(r"\s", "", one).replace('{"results":[600]}', "[600]") for one in said]
                self.assertEqual(said, ["[600]"])


@unittest.skipUnless(shutil.which("chromium"), "Chromium is not installed")
class Screens(unittest.TestCase):
    """What people see. The pictures stay in the folder that MCPO_SCREENSHOTS names."""

    def test_the_chip_is_in_the_chat_and_the_servers_are_on_the_tools_page(self):
        folder = os.environ.get("MCPO_SCREENSHOTS") or self.enterContext(tempfile.TemporaryDirectory())
        Path(folder).mkdir(parents=True, exist_ok=True)
        chat = echo(it.admin)
        chat.say(("write_file", {"name": "minutes.txt", "content": "four"}))
        url = it.openwebui.url
        pages = ["chat", f"{url}/c/{chat.id}", "minutes.txt"]
        shown = echo(it.admin)
        shown.say(("write_file", {"name": "page.html", "content": "<h1 style='color: teal'>A page of a tool</h1>"}))
        pages += ["page", f"{url}/c/{shown.id}", "page.html"]
        pages += ["tools", f"{url}/?settings=admin%3Aintegrations", "Powerpoint"]
        python = ROOT / ".tools/openwebui/bin/python"
        browser = [str(python), str(ROOT / "tests/openwebui/browser.py"), shutil.which("chromium")]
        done = subprocess.run([*browser, it.admin.token, folder, *pages], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
