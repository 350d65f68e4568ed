"""`docker compose up`, and every command of the operations guide, in the order of a stack's life."""

import unittest
from datetime import datetime

import deck
from stack import COUNTER, FIXTURES, NAMES, TAG, Stack, docker, result
from web import answers, first_admin, request, wait_for


class AStacksLife(unittest.TestCase):
    """One stack and one long story: each step finds what the one before it left."""

    def test_from_the_first_start_to_the_last_volume(self):
        # The design's own health check, slow as it is.
        with Stack("quickstart", overrides=(NAMES, FIXTURES)) as self.stack:
            for step in (
                self.without_a_config_it_says_what_to_do,
                self.the_bridge_is_healthy_before_open_webui_starts,
                self.a_plain_user_has_the_tools_with_nothing_configured,
                self.a_deck_with_japanese_comes_through_the_published_port,
                self.commands_that_look,
                self.a_config_change_and_a_restart,
                self.stop_keeps_everything,
                self.a_changed_compose_file_recreates_what_it_concerns,
                self.an_update_replaces_the_bridge_alone,
                self.an_update_is_rolled_back,
                self.a_key_is_exchanged_while_both_are_good,
                self.down_keeps_the_volumes,
                self.in_the_foreground_until_ctrl_c,
                self.a_backup_brings_everything_back,
                self.down_v_keeps_nothing,
            ):
                with self.subTest(step.__name__):
                    print(f"\n    {step.__name__.replace('_', ' ')}", end=" ", flush=True)
                    step()

    def without_a_config_it_says_what_to_do(self):
        failed = self.stack.run("up", "-d", check=False)
        self.assertNotEqual(failed.returncode, 0)
        logs = self.stack.compose("logs", "--no-log-prefix", "init")
        self.assertIn("config/mcp-servers.json is missing: cp mcp-servers.json.example", logs)

    def the_bridge_is_healthy_before_open_webui_starts(self):
        self.stack.configure(chart=deck.CHART, counter=COUNTER)
        self.stack.compose("up", "-d", "--build")
        bridge, webui = self.stack.container("mcpo-bridge"), self.stack.container("openwebui")
        good = [probe for probe in bridge["State"]["Health"]["Log"] if probe["ExitCode"] == 0]
        self.assertLess(moment(good[0]["Start"]), moment(webui["State"]["StartedAt"]))
        self.stack.wait_healthy("openwebui")

    def a_plain_user_has_the_tools_with_nothing_configured(self):
        self.webui = f"http://localhost:{self.stack.webui_port}"
        deck.wait_until_offered(self.stack, "time", "excel", "powerpoint", "chart")
        admin = first_admin(self.webui)
        self.user = admin.plain_user("hanako")
        self.user.wait_for_tools("time", "excel", "powerpoint", "chart")
        self.assertEqual(request("GET", f"{self.webui}/api/v1/tools/").status, 401)

    def a_deck_with_japanese_comes_through_the_published_port(self):
        call = self.stack.chat()
        self.link = deck.link(deck.make(call))
        self.assertTrue(self.link.startswith(f"{self.stack.bridge}/files/"), self.link)
        deck.check(download(self.link))
        self.assertTrue(deck.glyphs_are_there(call, download), "Japanese characters are drawn as boxes")
        # What ended by itself is collected within 10 s.
        wait_for("no process is left uncollected", lambda: self.zombies() == "", 30)

    def zombies(self):
        return self.stack.exec("mcpo-bridge", "sh", "-c", "grep -l '^State:.Z' /proc/[0-9]*/status || true")

    def commands_that_look(self):
        stack = self.stack
        self.assertIn("(healthy)", stack.compose("ps"))
        self.assertIn("Exited (0)", stack.compose("ps", "-a"))
        for arguments in (["logs"], ["logs", "--tail=100"], ["logs", "--since", "1h"], ["logs", "mcpo-bridge"]):
            self.assertIn('"message":"serving"', stack.compose(*arguments))
        self.assertNotIn("mcpo-bridge-1", stack.compose("logs", "openwebui"))
        stack.until_interrupted("logs", "-f", seen='"message":"serving"')
        stack.until_interrupted("logs", "-f", "mcpo-bridge", seen='"message":"serving"')
        self.assertEqual(stack.exec("mcpo-bridge", "/bin/bash", "-c", "id -un"), "mcpo")
        self.assertEqual(stack.compose("run", "--rm", "-T", "mcpo-bridge", "/bin/bash", "-c", "echo clean"), "clean")
        (container,) = stack.ids("mcpo-bridge")
        self.assertEqual(docker("inspect", "-f", "{{.State.Health.Status}}", container), "healthy")
        self.assertIn(request("GET", f"{stack.bridge}/health").json()["status"], ("ok", "degraded"))
        self.assertIn(f"{stack.project}_mcpo-network", docker("network", "ls"))
        self.assertIn("Containers", docker("network", "inspect", f"{stack.project}_mcpo-network"))
        self.assertIn('"status"', stack.exec("openwebui", "curl", "-s", "http://mcpo-bridge:8080/health"))
        volumes = docker("volume", "ls", "-q").split()
        for name in ("openwebui-data", "mcpo-jobs", "mcpo-config", "mcpo-tools"):
            self.assertIn(f"{stack.project}_{name}", volumes)
        self.assertIn("Mountpoint", docker("volume", "inspect", f"{stack.project}_mcpo-jobs"))
        self.assertIn("bridge", stack.exec("mcpo-bridge", "ls", "-A", "/tmp/mcpo-jobs"))

    def a_config_change_and_a_restart(self):
        stack = self.stack
        # It is seen without a restart …
        stack.configure(chart=deck.CHART, counter=COUNTER, clock={"command": "python3", "args": COUNTER["args"]})
        wait_for("the new server is offered", answers(f"{stack.bridge}/mcpo/clock/openapi.json"), 30)
        # … and after one.
        stack.compose("restart", "mcpo-bridge")
        stack.wait_healthy("mcpo-bridge")
        wait_for("the new server is offered", answers(f"{stack.bridge}/mcpo/clock/openapi.json"), 30)
        deck.check(download(self.link))
        stack.compose("restart")
        stack.wait_healthy("mcpo-bridge")
        stack.wait_healthy("openwebui")

    def stop_keeps_everything(self):
        call = self.stack.chat(chat="kept")
        call("counter", "write_file", name="kept.txt", content="kept")
        self.stack.compose("stop")
        states = {row["Service"]: row["State"] for row in self.stack.rows()}
        self.assertEqual((states["mcpo-bridge"], states["openwebui"]), ("exited", "exited"))
        self.assertEqual(self.stack.container("mcpo-bridge")["State"]["ExitCode"], 0, "it did not stop cleanly")
        self.stack.compose("up", "-d")
        self.assertEqual(result(call("counter", "read_file", name="kept.txt")), "kept")

    def a_changed_compose_file_recreates_what_it_concerns(self):
        before = self.stack.ids("mcpo-bridge")
        file = self.stack.folder / "docker-compose.yml"
        file.write_text(file.read_text().replace("${MCPO_LOG_LEVEL:-INFO}", "${MCPO_LOG_LEVEL:-DEBUG}"))
        self.stack.compose("up", "-d")
        # (Some versions of Compose recreate what depends on it too.)
        self.assertNotEqual(self.stack.ids("mcpo-bridge"), before)
        self.assertIn('"level":"DEBUG"', self.stack.compose("logs", "mcpo-bridge"))

    def an_update_replaces_the_bridge_alone(self):
        before = self.stack.ids("mcpo-bridge"), self.stack.ids("openwebui")
        (self.stack.folder / "assets/logo.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
        self.stack.compose("build", "mcpo-bridge")
        self.stack.compose("up", "-d", "--no-deps", "mcpo-bridge")
        self.assertNotEqual(self.stack.ids("mcpo-bridge"), before[0])
        self.assertEqual(self.stack.ids("openwebui"), before[1])
        self.stack.wait_healthy("mcpo-bridge")
        self.assertEqual(self.stack.exec("mcpo-bridge", "ls", "/app/assets").split(), ["logo.svg", "template.pptx"])
        deck.check(download(self.link))

    def an_update_is_rolled_back(self):
        now, before = f"mcpo-bridge:{TAG}", f"mcpo-bridge:{TAG}-before"
        docker("tag", now, before)
        self.addCleanup(docker, "image", "rm", before)
        self.stack.compose("up", "-d", "--no-deps", "mcpo-bridge", env={"MCPO_IMAGE_TAG": f"{TAG}-before"})
        self.assertEqual(self.stack.container("mcpo-bridge")["Config"]["Image"], before)
        self.stack.compose("up", "-d", "--no-deps", "mcpo-bridge")
        self.stack.wait_healthy("mcpo-bridge")

    def a_key_is_exchanged_while_both_are_good(self):
        old = self.stack.exec("mcpo-bridge", "cut", "-d:", "-f2", "/run/mcpo/api-key")
        (self.stack.folder / ".env").write_text(f"MCPO_API_KEY=openwebui:a-new-key,openwebui:{old}\n")
        self.stack.compose("up", "-d")
        self.stack.compose("restart", "mcpo-bridge")
        self.stack.wait_healthy("mcpo-bridge")
        for key, status in ((old, 404), ("a-new-key", 404), ("another", 403)):
            answer = request("POST", f"{self.stack.bridge}/mcpo/none/none", {}, {"Authorization": f"Bearer {key}"})
            self.assertEqual(answer.status, status, answer.body)

    def down_keeps_the_volumes(self):
        self.stack.compose("down")
        self.assertEqual(self.stack.compose("ps", "-aq"), "")
        self.stack.compose("up", "-d")
        deck.check(download(self.link))
        self.stack.wait_healthy("openwebui")
        # The login outlives the container: WEBUI_SECRET_KEY is kept.
        self.user.wait_for_tools("excel")
        self.stack.compose("down")

    def in_the_foreground_until_ctrl_c(self):
        output = self.stack.until_interrupted("up", seen="open_webui.main:lifespan")
        self.assertIn('"message":"serving"', output)
        self.assertEqual(self.stack.container("mcpo-bridge")["State"]["Status"], "exited")

    def a_backup_brings_everything_back(self):
        stack, image = self.stack, f"mcpo-bridge:{TAG}"
        backup = ["-v", f"{stack.folder}/backup:/backup", "--user", "0", image]
        volumes = ("openwebui-data", "openwebui-secrets", "mcpo-secrets")
        stack.compose("up", "-d")
        stack.compose("stop", "openwebui")
        for volume in volumes:
            docker("run", "--rm", "-v", f"{stack.project}_{volume}:/from:ro", *backup,
                   "tar", "-C", "/from", "-czf", f"/backup/{volume}.tar.gz", ".")  # fmt: skip
        stack.compose("down", "-v")
        stack.compose("create")
        for volume in volumes:
            docker("run", "--rm", "-v", f"{stack.project}_{volume}:/to", *backup,
                   "sh", "-c", f"find /to -mindepth 1 -delete && tar -C /to -xzf /backup/{volume}.tar.gz")  # fmt: skip
        stack.compose("up", "-d")
        stack.wait_healthy("openwebui")
        deck.wait_until_offered(stack, "excel")
        # The account, its login and the connections with their key are those of before.
        self.user.wait_for_tools("excel")

    def down_v_keeps_nothing(self):
        self.stack.compose("down", "-v")
        left = [name for name in docker("volume", "ls", "-q").split() if name.startswith(self.stack.project)]
        self.assertEqual(left, [])
        self.assertTrue((self.stack.folder / "config/mcp-servers.json").is_file())


def moment(text):
    return datetime.fromisoformat(text[:26].rstrip("Z"))


def download(url):
    answer = request("GET", url)
    assert answer.status == 200, (answer.status, answer.body[:200])
    return answer.body
