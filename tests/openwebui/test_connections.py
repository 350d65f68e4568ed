"""`mcpo-bridge openwebui` against the real Open WebUI, and `allow` in real chats."""

import json
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from chat import Chat, text  # noqa: E402
from model import Model  # noqa: E402
from serving import KEY, ROOT, Bridge, OpenWebUi, free_port  # noqa: E402

ECHO = {"command": "python3", "args": [str(ROOT / "tests/fixtures/echo_server.py")]}
ALONE = {"MCPO_FILES_SERVER": "false"}  # the connections here are those of the file
PATH = "/api/v1/configs/tool_servers"
THEIRS = {
    "type": "openapi", "url": "http://127.0.0.1:9/x", "path": "openapi.json", "auth_type": "none", "key": "",
    "headers": None, "forward_cookies": False, "config": {"enable": False, "access_grants": []},
    "info": {"id": "theirs", "name": "Somebody's", "description": ""}, "extra": {"odd": [1.5, None]},
}


def servers():
    named = {"echo": {}, "team": {"users": ["Alice@example.com"], "groups": ["sales"]}, "chiefs": {"roles": ["admin"]}}
    return {name: ECHO | ({"allow": allow} if allow else {}) for name, allow in named.items()}


class Setup:
    """Everything, once for all tests."""

    def __init__(self):
        self.binary = Path(os.environ.get("MCPO_BINARY", ROOT / "target/release/mcpo-bridge"))
        self._folder = tempfile.TemporaryDirectory(prefix="mcpo-connections-")
        self.folder = Path(self._folder.name)
        ports = free_port(), free_port()
        openwebui = f"http://127.0.0.1:{ports[1]}"
        self._running = [model := Model()]
        try:
            self.bridge = Bridge(self.binary, servers(), ports[0], openwebui, self.folder, **ALONE)
            self._running.append(self.bridge)
            printed = self.run("connections", "--show-key", "--compact").stdout
            self.openwebui = OpenWebUi(ports[1], model.url, json.loads(printed), self.folder)
            self._running.append(self.openwebui)
            self.admin = self.openwebui.admin
            self.alice, self.bob, self.carol = (self.openwebui.add_user(name) for name in ("alice", "bob", "carol"))
            group = self.admin.post("/api/v1/groups/create", {"name": "sales", "description": ""})
            self.admin.post(f"/api/v1/groups/id/{group['id']}/users/add", {"user_ids": [self.carol.id]})
        except BaseException:
            self.close()
            raise

    def config(self, servers):
        (self.folder / "mcp-servers.json").write_text(json.dumps({"mcpServers": servers}))

    def run(self, *arguments, key=KEY, token=None):
        env = os.environ | {
            "MCPO_CONFIG_FILE": str(self.folder / "mcp-servers.json"),
            "MCPO_JOBS_DIR": str(self.folder / "jobs"),
            "MCPO_BASE_URL": self.bridge.url,
            "MCPO_API_KEY": key,
        } | ALONE
        env |= {"MCPO_OPENWEBUI_ADMIN_KEY": token} if token else {}
        command = [str(self.binary), "openwebui", *arguments]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)

    def sync(self, *arguments, key=KEY, token=None, url=None):
        url = url or self.openwebui.url
        return self.run("sync", "--url", url, *arguments, key=key, token=token or self.admin.token)

    def connections(self):
        found = self.admin.get(PATH)["TOOL_SERVER_CONNECTIONS"]
        return {connection["info"]["id"]: connection for connection in found}

    def put(self, connections):
        self.admin.post(PATH, {"TOOL_SERVER_CONNECTIONS": list(connections.values())})

    def close(self):
        for running in reversed(self._running):
            running.close()
        self._folder.cleanup()


def setUpModule():
    global it
    it = Setup()


def tearDownModule():
    it.close()


class Case(unittest.TestCase):
    def setUp(self):
        it.config(servers())
        self.synced()

    def synced(self, *arguments, **more):
        done = it.sync(*arguments, **more)
        self.assertEqual(done.returncode, 0, done.stderr)
        for secret in (KEY, it.admin.token):
            self.assertNotIn(secret, done.stdout + done.stderr)
        return done.stdout

    def offered(self, user):
        return {tool["id"] for tool in user.get("/api/v1/tools/") if tool["id"].startswith("server:")}

    def assert_up_to_date(self, *arguments):
        self.assertEqual(self.synced(*arguments), "Open WebUI is up to date.\n")


class Sync(Case):
    def test_what_was_printed_for_a_new_database_is_ours_and_needs_no_second_time(self):
        self.assert_up_to_date()
        self.assertEqual(set(it.connections()), {"echo", "team", "chiefs"})

    def test_each_is_offered_what_allow_gives_him(self):
        self.assertEqual(self.offered(it.admin), {"server:echo", "server:team", "server:chiefs"})
        for user in (it.alice, it.carol):
            self.assertEqual(self.offered(user), {"server:echo", "server:team"})
        self.assertEqual(self.offered(it.bob), {"server:echo"})

    def test_servers_come_and_go_and_somebody_elses_connection_stays(self):
        before = it.connections() | {"theirs": THEIRS}
        it.put(before)
        it.config({"echo": ECHO, "new one": ECHO})
        planned = self.synced("--dry-run")
        self.assertEqual(it.connections(), before)
        done = self.synced()
        for line in ("- team", "- chiefs", "+ newone-"):
            self.assertIn(line, planned)
            self.assertIn(line, done)
        now = it.connections()
        self.assertEqual([now["echo"], now["theirs"]], [before["echo"], THEIRS])
        self.assertEqual(len(now), 3)
        self.assert_up_to_date()
        del now["theirs"]
        it.put(now)

    def test_a_new_key_is_taken_over_and_what_an_administrator_did_stays(self):
        edited = it.connections()
        edited["team"]["config"] |= {"access_grants": [], "function_name_filter_list": "echo"}
        edited["team"]["info"]["name"] = "The team's"
        edited["team"]["headers"]["X-Own"] = "1"
        it.put(edited)
        self.assert_up_to_date()
        self.assertIn("key: changed", self.synced(key="openwebui:another"))
        now = it.connections()["team"]
        self.assertEqual(now, edited["team"] | {"key": "another"})
        self.synced()
        it.put({})

    def test_the_type_can_change(self):
        self.assertIn('type: "openapi" → "mcp"', self.synced("--type", "mcp"))
        self.assert_up_to_date("--type", "mcp")
        self.assertIn("server:mcp:team", self.offered(it.carol))
        self.synced()

    def test_the_connection_of_somebody_else_with_the_same_id_is_in_the_way(self):
        it.put({"echo": THEIRS | {"info": {"id": "echo"}}})
        done = it.sync()
        self.assertEqual(done.returncode, 1)
        self.assertIn("--adopt", done.stderr)
        self.synced("--adopt")
        self.assertFalse(it.connections()["echo"]["config"]["enable"], "what he set stays")
        it.put({})

    def test_what_is_wrong_is_said(self):
        for arguments, words in (
            ({"token": it.bob.token}, "rejected the admin key"),
            ({"token": "sk-nonsense"}, "rejected the admin key"),
            ({"url": "http://127.0.0.1:9"}, "cannot reach"),
            ({"url": it.bridge.url}, "does not respond like Open WebUI"),
            ({"url": f"{it.openwebui.url}/elsewhere"}, "does not respond like Open WebUI"),
        ):
            done = it.sync(**arguments)
            self.assertEqual(done.returncode, 1, done.stdout)
            self.assertIn(words, done.stderr)
            self.assertNotIn(arguments.get("token", it.admin.token), done.stderr)


class Allowed(Case):
    def say(self, user, door):
        tool = "team_echo" if ":mcp:" in door else "echo"
        return text(Chat(user, [door]).say((tool, {"text": "a-canary"})))

    def test_in_chats_only_those_may_call_whom_the_config_names(self):
        for kind, door in (("openapi", "server:team"), ("mcp", "server:mcp:team")):
            self.synced("--type", kind)
            # An administrator of Open WebUI may grant what he likes: the bridge decides.
            everybody = it.connections()
            grant = {"principal_type": "user", "principal_id": "*", "permission": "read"}
            everybody["team"]["config"]["access_grants"] = [grant]
            it.put(everybody)
            for user in (it.alice, it.carol):
                with self.subTest(kind, user=user.id):
                    self.assertIn('a-canary', self.answer(self.say(user, door)))
            with self.subTest(kind, user="bob"):
                said = self.answer(self.say(it.bob, door))
                self.assertNotIn("a-canary", said)
                self.assertRegex(said, "Not Found: no server|Offered: *$|no tool")
            it.put({})

    def test_with_the_users_own_token_each_document_is_read_and_its_tools_are_called(self):
        self.synced("--session")
        self.assert_up_to_date("--session")
        for door in ("server:echo", "server:team"):
            with self.subTest(door):
                self.assertIn("a-canary", self.answer(self.say(it.carol, door)))
        self.assertNotIn("a-canary", self.answer(self.say(it.bob, "server:team")))
        self.synced()

    def answer(self, said):
        """Without the question, which the model's call repeats."""
        lines = [line for line in said.splitlines() if '"function_call"' not in line]
        return "\n".join(lines)


if __name__ == "__main__":
    unittest.main(verbosity=2)
