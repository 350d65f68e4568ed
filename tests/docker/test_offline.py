"""A host without internet: servers that are in the image, and the bundle, by its own instructions."""

import json
import re
import subprocess
import unittest
import zipfile
from pathlib import Path

from stack import FOLDER, HEALTH, NAMES, TAG, Stack, docker
from web import wait_for

ROOT = Path(__file__).resolve().parents[2]
WORKBOOK = json.dumps({"path": "hello.xlsx", "sheets": ["Hello"]})


class WithoutNetwork(unittest.TestCase):
    def test_the_first_call_works_with_an_empty_volume_over_the_tools(self):
        name = f"mcpo-{TAG}-offline"
        docker("run", "-d", "--name", name, "--network", "none", "--read-only", "--cap-drop", "ALL",
               "--security-opt", "no-new-privileges", "--tmpfs", "/tmp:mode=1777",
               "-v", "/tmp/mcpo-jobs", "-v", "/tmp/mcpo-tools", "-e", "MCPO_API_KEY=key",
               "-e", "MCPO_CONFIG_FILE=/app/mcp-servers.json.example", f"mcpo-bridge:{TAG}")  # fmt: skip
        self.addCleanup(docker, "rm", "--force", "--volumes", name)

        def curl(*arguments, check=True):
            return docker(
                "exec", name, "curl", "-fsS", "-m", "120", "-HAuthorization: Bearer key", *arguments, check=check
            )

        wait_for("it listens", lambda: "status" in curl("http://localhost:8080/health", check=False))
        # On a slow machine it is told to try again while the server is asked what it offers.
        url = "http://localhost:8080/mcpo/excel/create_workbook"
        call = curl("--retry", "10", "-HContent-Type: application/json", "-d", WORKBOOK, url)
        (file,) = json.loads(call)["files"]
        self.assertTrue(curl("-o", "/dev/null", "-w", "%{http_code}", file["url"]).startswith("200"))
        started = docker("logs", name)
        for server in ("time", "excel", "powerpoint"):
            self.assertRegex(started, f'"using the installed environment".*"server":"{server}","locked":true')
        # Nothing was looked for, and no server can change what it is started from.
        self.assertEqual(docker("exec", name, "ls", "-A", "/tmp/mcpo-tools"), "")
        refused = docker("exec", name, "find", "/opt/mcpo-tools", "-writable", "-not", "-type", "l")
        self.assertEqual(refused, "")


class TheBundle(unittest.TestCase):
    def test_its_instructions_lead_to_a_workbook(self):
        host = FOLDER / "host"
        host.mkdir()
        packed = subprocess.run(
            [ROOT / "scripts/bundle", "--no-build", "--version", TAG, "--dist", host],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        self.assertEqual(packed.returncode, 0, packed.stderr)
        docker("image", "rm", f"mcpo-bridge:{TAG}")
        blocks = re.findall(r"```sh\n(.*?)```", (host / "INSTALL.md").read_text(), re.S)
        check, load, *others = blocks
        self.run_in(host, check + load)
        docker("image", "inspect", f"mcpo-bridge:{TAG}")
        # A project with names and ports of its own, where the guide has its.
        stack = Stack("bundle", overrides=(NAMES, HEALTH))
        with stack.of(host / "mcpo-bridge"):
            self.run_in(stack.folder, "".join(others).replace(":8080", f":{stack.bridge_port}"), stack.env)
            with zipfile.ZipFile(stack.folder / "hello.xlsx") as workbook:
                self.assertIn("xl/workbook.xml", workbook.namelist())
            self.contents(stack.folder / "sbom")

    def run_in(self, folder, script, env=None):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=folder, env=env, capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        self.assertEqual(done.returncode, 0, f"{script}\n{done.stdout}{done.stderr}")

    def contents(self, folder):
        def named(file):
            return {found["name"] for found in json.loads((folder / file).read_text())["components"]}

        self.assertIn("tokio", named("program.cdx.json"))
        self.assertLessEqual({"libc6", "uv", "excel-mcp-server"}, named("image-mcpo-bridge.cdx.json"))
        self.assertIn("open-webui", named("image-open-webui.cdx.json"))
