"""What the restart policies and the order of starting do when something breaks."""

import unittest

from stack import COUNTER, FIXTURES, HEALTH, NAMES, Stack, result
from web import wait_for

SICK = """
services:
  mcpo-bridge: {healthcheck: {test: [CMD, "false"], interval: 1s, start_period: 0s, retries: 2}}
"""
BROKEN_WEBUI = """
services:
  openwebui: {command: [bash, -c, "exit 3"]}
"""


class Failures(unittest.TestCase):
    def test_a_killed_bridge_is_restarted_and_chats_go_on(self):
        with Stack("killed", overrides=(NAMES, HEALTH, FIXTURES)) as stack:
            stack.write_config({"mcpServers": {"counter": COUNTER}})
            stack.compose("up", "-d")
            call = stack.chat()
            self.assertEqual([call("counter", "counter") for _ in range(2)], [1, 2])
            call("counter", "write_file", name="kept.txt", content="kept")
            webui = stack.container("openwebui")["State"]["StartedAt"]

            # Process 1 is its parent; a process cannot kill process 1 of its own container.
            stack.exec("mcpo-bridge", "sh", "-c", "kill -9 $(cat /proc/1/task/1/children)")
            wait_for("it was restarted", lambda: stack.container("mcpo-bridge")["RestartCount"] == 1)
            stack.wait_healthy("mcpo-bridge")
            after = call("counter", "counter")
            self.assertEqual(after["result"], 1)
            self.assertIn("restarted", after["notice"])
            self.assertEqual(result(call("counter", "read_file", name="kept.txt")), "kept")
            self.assertEqual(stack.container("openwebui")["State"]["StartedAt"], webui)

    def test_a_sick_bridge_keeps_open_webui_from_starting(self):
        with Stack("sick", overrides=(NAMES, SICK)) as stack:
            stack.write_config({"mcpServers": {}})
            failed = stack.run("up", "-d", check=False)
            self.assertNotEqual(failed.returncode, 0)
            self.assertIn("unhealthy", failed.stderr)
            self.assertEqual(stack.container("openwebui")["State"]["Status"], "created")
            # Once it is well again, the same command starts both.
            (stack.folder / "test-1.yml").write_text(HEALTH)
            stack.compose("up", "-d")
            stack.wait_healthy("openwebui")

    def test_a_broken_open_webui_leaves_the_bridge_alone(self):
        with Stack("webui", overrides=(NAMES, HEALTH, BROKEN_WEBUI)) as stack:
            stack.write_config({"mcpServers": {}})
            stack.compose("up", "-d")
            started = stack.container("mcpo-bridge")["State"]["StartedAt"]
            wait_for("Open WebUI is tried again", lambda: stack.container("openwebui")["RestartCount"] >= 2)
            bridge = stack.container("mcpo-bridge")
            self.assertEqual((bridge["State"]["StartedAt"], bridge["RestartCount"]), (started, 0))
            self.assertEqual(stack.health("mcpo-bridge"), "healthy")
