"""Three bridges on one volume, round robin, and chats that do not care which one answers."""

import json
import os
import subprocess
import threading
import unittest
from concurrent.futures import ThreadPoolExecutor

from stack import COUNTER, FIXTURES, HEALTH, NAMES, Stack, docker, free_port, inspect, result
from web import request, user_token, wait_for

FILES = ("docker-compose.yml", "docker-compose.scale.yml")
CHATS = 60
# So that what was killed stays dead, for the test to look at the others.
STAY_DEAD = 'services: {mcpo-bridge: {restart: "no"}}'


class Chat:
    """One user with one chat, and what he believes his counter to be."""

    def __init__(self, stack, number, key, secret):
        self.url = f"{stack.bridge}/mcpo/counter/"
        self.name = f"user-{number}"
        self.key, self.secret, self.count = key, secret, 0

    def ask(self, tool, **arguments):
        """Status and answer; a broken connection is status 0."""
        headers = {
            "Authorization": f"Bearer {self.key}",
            "X-OpenWebUI-User-Jwt": user_token(self.name, self.secret),
            "X-OpenWebUI-Chat-Id": "only",
        }
        try:
            answer = request("POST", self.url + tool, arguments, headers)
        except OSError as error:
            return 0, repr(error)
        return answer.status, answer.json() if answer.status == 200 else answer.body

    def call(self, tool, **arguments):
        status, answer = self.ask(tool, **arguments)
        assert status == 200, f"{self.name} {tool}: {status} {answer!r}"
        return answer

    def step(self):
        """Counts one on; a loss must have been announced."""
        answer = self.call("counter")
        lost = isinstance(answer, dict) and "restarted" in answer.get("notice", "")
        wanted = 1 if lost else self.count + 1
        assert int(result(answer)) == wanted, f"{self.name}: {answer!r} after {self.count}"
        self.count = wanted
        return lost


class ThreeBridges(unittest.TestCase):
    def test_chats_over_a_death_and_an_update(self):
        with Stack("scale", FILES, (NAMES, HEALTH, FIXTURES, STAY_DEAD), MCPO_MEM_LIMIT="4g") as self.stack:
            self.stack.write_config({"mcpServers": {"counter": COUNTER}})
            self.stack.compose("up", "-d", "--scale", "mcpo-bridge=3", "balancer")
            self.pool = ThreadPoolExecutor(CHATS)
            self.addCleanup(self.pool.shutdown)
            first = self.stack.ids("mcpo-bridge")[0]
            key = docker("exec", first, "cat", "/run/mcpo/api-key").partition(":")[2]
            secret = docker("exec", first, "cat", "/run/mcpo/jwt-secret")
            self.chats = [Chat(self.stack, number, key, secret) for number in range(CHATS)]
            for step in (
                self.every_counter_is_right_wherever_the_call_lands,
                self.downloads_work_on_every_bridge,
                self.a_killed_bridge_takes_only_its_own_memory_along,
                self.a_new_bridge_is_found_without_a_restart,
                self.a_rolling_update_fails_no_request,
            ):
                with self.subTest(step.__name__):
                    print(f"\n    {step.__name__.replace('_', ' ')}", end=" ", flush=True)
                    step()

    def everybody(self, act):
        return list(self.pool.map(act, self.chats))

    def sessions(self):
        """How many chats live on each bridge."""
        found = {}
        for container in self.stack.ids("mcpo-bridge"):
            if inspect(container)["State"]["Running"]:
                health = json.loads(docker("exec", container, "curl", "-s", "http://localhost:8080/health"))
                found[container] = health["load"]["sessions"]
        return found

    def every_counter_is_right_wherever_the_call_lands(self):
        wait_for("the counter is offered", lambda: self.chats[0].ask("echo", text="x")[0] == 200, 60)
        for _ in range(5):
            self.assertEqual(sum(self.everybody(Chat.step)), 0)
        self.everybody(lambda chat: chat.call("write_file", name="mine.txt", content=chat.name))
        spread = self.sessions()
        print(f"(sessions: {sorted(spread.values())})", end=" ", flush=True)
        self.assertEqual(len(spread), 3)
        self.assertGreater(min(spread.values()), 0, spread)
        self.assertEqual(sum(spread.values()), CHATS)

    def downloads_work_on_every_bridge(self):
        answer = self.chats[0].call("write_file", name="shared.txt", content="everywhere")
        for _ in range(9):  # round robin: each bridge three times
            found = request("GET", answer["files"][0]["url"])
            self.assertEqual((found.status, found.body), (200, b"everywhere"))

    def a_killed_bridge_takes_only_its_own_memory_along(self):
        spread = self.sessions()
        victim = max(spread, key=spread.get)
        docker("kill", "--signal", "KILL", victim)
        lost = self.everybody(Chat.step)
        print(f"({sum(lost)} of {spread[victim]} told)", end=" ", flush=True)
        self.assertEqual(sum(lost), spread[victim])
        files = self.everybody(lambda chat: result(chat.call("read_file", name="mine.txt")) == chat.name)
        self.assertTrue(all(files))
        self.assertEqual(sum(self.everybody(Chat.step)), 0)

    def a_new_bridge_is_found_without_a_restart(self):
        balancer = self.stack.container("balancer")["State"]["StartedAt"]
        self.stack.compose("up", "-d", "--no-recreate", "--scale", "mcpo-bridge=3", "mcpo-bridge")
        wait_for("all three are healthy", lambda: all(self.bridge_states()), 120)

        def new_user():
            new_user.number += 1
            chat = Chat(self.stack, new_user.number, self.chats[0].key, self.chats[0].secret)
            chat.call("counter")
            return len(self.sessions()) == 3 and min(self.sessions().values()) > 0

        new_user.number = 1000
        wait_for("the third bridge gets calls", new_user, 60)
        self.assertEqual(self.stack.container("balancer")["State"]["StartedAt"], balancer)

    def bridge_states(self):
        return [
            inspect(container)["State"]["Health"]["Status"] == "healthy" for container in self.stack.ids("mcpo-bridge")
        ]

    def a_rolling_update_fails_no_request(self):
        before = set(self.stack.ids("mcpo-bridge"))
        (self.stack.folder / "assets/logo.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
        self.stack.compose("build", "mcpo-bridge")
        over, failures, steps, losses = threading.Event(), [], [], []

        def keep_counting(chat):
            while not over.is_set():
                try:
                    losses.append(chat.step())
                    steps.append(1)
                except AssertionError as error:
                    failures.append(str(error))
                over.wait(0.5)

        counting = [self.pool.submit(keep_counting, chat) for chat in self.chats]
        try:
            done = subprocess.run(
                ["scripts/rolling-update"], cwd=self.stack.folder, env=self.stack.env,
                capture_output=True, text=True, timeout=600, check=False,
            )  # fmt: skip
        finally:
            over.set()
            for each in counting:
                each.result(timeout=120)
        self.assertEqual(done.returncode, 0, done.stderr)
        print(f"({len(steps)} calls, {len(failures)} failed, {sum(losses)} told of a loss)", end=" ", flush=True)
        self.assertEqual(failures[:5], [])
        after = set(self.stack.ids("mcpo-bridge"))
        self.assertEqual((len(after), after & before), (3, set()))
        self.assertTrue(all(self.everybody(lambda chat: result(chat.call("read_file", name="mine.txt")) == chat.name)))


class OtherBalancers(unittest.TestCase):
    """HAProxy and Traefik in place of nginx, by the shipped files."""

    def test_haproxy(self):
        self.chats_go_on("haproxy")

    def test_traefik(self):
        host = os.environ.get("DOCKER_HOST", "")
        socket = host.removeprefix("unix://") if host.startswith("unix://") else "/var/run/docker.sock"
        self.chats_go_on("traefik", DOCKER_SOCKET=socket)

    def chats_go_on(self, balancer, **variables):
        files = (*FILES, f"deploy/{balancer}/docker-compose.{balancer}.yml")
        with Stack(balancer, files, (NAMES, HEALTH, FIXTURES), **variables) as stack:
            stack.write_config({"mcpServers": {"counter": COUNTER}})
            stack.compose("up", "-d", "--scale", "mcpo-bridge=2", "balancer")
            first = stack.ids("mcpo-bridge")[0]
            key = docker("exec", first, "cat", "/run/mcpo/api-key").partition(":")[2]
            secret = docker("exec", first, "cat", "/run/mcpo/jwt-secret")
            chats = [Chat(stack, number, key, secret) for number in range(12)]
            wait_for("the counter is offered", lambda: chats[0].ask("echo", text="x")[0] == 200, 60)
            stack.wait_healthy("balancer")
            for _ in range(3):
                self.assertFalse(any([chat.step() for chat in chats]), "a chat lost its process")
            made = chats[0].call("write_file", name="made.txt", content="by way of " + balancer)
            found = request("GET", made["files"][0]["url"])
            self.assertEqual((found.status, found.body), (200, f"by way of {balancer}".encode()))
            stack.compose("up", "-d", "--no-recreate", "--scale", "mcpo-bridge=1", "mcpo-bridge")
            wait_for("one bridge is left", lambda: len(stack.ids("mcpo-bridge")) == 1, 120)

            def all_answer():
                return all(chat.ask("list_files")[0] == 200 for chat in chats)

            # The balancer has up to 2 s to notice; then nothing fails any more.
            wait_for("every chat is answered by the bridge that is left", all_answer, 30)
            self.assertTrue(all_answer())


class ProductionScaled(unittest.TestCase):
    def test_the_three_files_go_together(self):
        ports = {
            "HTTP_PORT": str(free_port()),
            "HTTPS_PORT": str(free_port()),
            "MCPO_PUBLISHED_PORT": f"127.0.0.1:{free_port()}",
        }
        files = (*FILES[:1], "docker-compose.prod.yml", *FILES[1:])
        with Stack("prod-scale", files, (NAMES, HEALTH, FIXTURES), **ports) as stack:
            stack.write_config({"mcpServers": {"counter": COUNTER}})
            stack.compose("up", "-d", "--scale", "mcpo-bridge=2", "balancer")
            self.assertEqual(len(stack.ids("mcpo-bridge")), 2)
            stack.wait_healthy("balancer")
            port = ports["MCPO_PUBLISHED_PORT"].rpartition(":")[2]
            self.assertEqual(request("GET", f"http://127.0.0.1:{port}/health").status, 200)
