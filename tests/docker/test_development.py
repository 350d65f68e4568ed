"""The copied override: no login, logs in a folder of one's own, and a rebuild when something changes."""

import os
import signal
import unittest

from stack import COUNTER, FIXTURES, HEALTH, NAMES, Stack
from web import answers, request, wait_for

FILES = ("docker-compose.yml", "docker-compose.override.yml.example")


class Development(unittest.TestCase):
    def test_the_override(self):
        me = os.getuid() or 1000  # root is not who develops
        with Stack("development", FILES, (NAMES, HEALTH, FIXTURES), MCPO_UID=str(me), MCPO_GID=str(me)) as stack:
            stack.write_config({"mcpServers": {"counter": COUNTER}})
            stack.compose("up", "-d")
            webui = f"http://localhost:{stack.webui_port}"
            wait_for("Open WebUI answers", answers(f"{webui}/api/config"))
            self.assertFalse(request("GET", f"{webui}/api/config").json()["features"]["auth"])
            self.assertEqual(stack.chat()("counter", "counter"), 1)

            log = stack.folder / "logs/mcpo-bridge.log"
            self.assertIn('"level":"DEBUG"', log.read_text())
            self.assertEqual((log.stat().st_uid, stack.exec("mcpo-bridge", "id", "-u")), (me, str(me)))
            for service in ("mcpo-bridge", "openwebui"):
                bound = stack.container(service)["NetworkSettings"]["Ports"]["8080/tcp"]
                self.assertEqual([port["HostIp"] for port in bound], ["127.0.0.1"])

            before = stack.ids("mcpo-bridge")
            watching = stack.in_background("watch", "--no-up")
            try:
                for line in watching.stdout:
                    if "watch" in line.lower():
                        break
                example = stack.folder / "examples/chart_server.py"
                example.write_text(example.read_text() + "# changed\n")
                wait_for("it was built and replaced", lambda: stack.ids("mcpo-bridge") not in ([], before), 240)
                stack.wait_healthy("mcpo-bridge")
                self.assertIn("# changed", stack.exec("mcpo-bridge", "tail", "-1", "/app/examples/chart_server.py"))
            finally:
                os.killpg(watching.pid, signal.SIGINT)
                watching.communicate(timeout=60)
