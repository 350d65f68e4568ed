"""What can be said of the files and the image without a running stack."""

import json
import os
import re
import subprocess
import tempfile
import tomllib
import unittest
from pathlib import Path

import trustme
from stack import CLONE, TAG, docker, inspect

BASE, PROD, SCALE = "docker-compose.yml", "docker-compose.prod.yml", "docker-compose.scale.yml"
DEVELOPMENT = "docker-compose.override.yml.example"
SETS = [[BASE], [BASE, DEVELOPMENT], [BASE, PROD], [BASE, SCALE], [BASE, PROD, SCALE]]


def config(files, *arguments, given=None, unset=()):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("COMPOSE_", "MCPO_")) and k not in unset}
    clean.update(given or {})
    options = [option for file in files for option in ("-f", file)]
    done = subprocess.run(
        ["docker", "compose", *options, "config", *arguments],
        cwd=CLONE, env=clean, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done


class ComposeFiles(unittest.TestCase):
    def test_every_set_is_valid_without_a_dotenv_and_says_nothing(self):
        for files in SETS:
            with self.subTest(files):
                done = config(files, "-q")
                self.assertEqual((done.returncode, done.stdout + done.stderr), (0, ""))

    def test_names_ports_and_volumes_are_the_designs(self):
        found = json.loads(config([BASE], "--format", "json").stdout)
        services = found["services"]
        bridge, webui = services["mcpo-bridge"], services["openwebui"]
        self.assertEqual(found["name"], "mcpo-bridge")
        self.assertEqual((bridge["container_name"], webui["container_name"]), ("mcpo-bridge", "openwebui"))
        ports = {
            name: [(p["published"], p["target"]) for p in services[name]["ports"]]
            for name in ("mcpo-bridge", "openwebui")
        }
        self.assertEqual(ports, {"mcpo-bridge": [("8080", 8080)], "openwebui": [("3000", 8080)]})
        self.assertEqual((bridge["restart"], webui["restart"]), ("unless-stopped", "unless-stopped"))
        self.assertEqual(webui["depends_on"]["mcpo-bridge"]["condition"], "service_healthy")
        names = {key: volume["name"] for key, volume in found["volumes"].items()}
        for volume in ("openwebui-data", "mcpo-jobs", "mcpo-config", "mcpo-tools"):
            self.assertEqual(names[volume], f"mcpo-bridge_{volume}")
        self.assertEqual(found["networks"]["mcpo-network"]["name"], "mcpo-bridge_mcpo-network")
        (mounted,) = (volume for volume in bridge["volumes"] if volume["target"] == "/app/config")
        self.assertEqual((mounted["source"], mounted["read_only"]), ("mcpo-config", True))
        self.assertEqual(webui["environment"]["WEBUI_AUTH"], "true")

    def test_production_publishes_the_two_ports_of_nginx_alone(self):
        services = json.loads(config([BASE, PROD], "--format", "json").stdout)["services"]
        published = {
            name: [p["target"] for p in service["ports"]] for name, service in services.items() if service.get("ports")
        }
        self.assertEqual(published, {"nginx": [80, 443]})
        kinds = {volume["type"] for volume in services["mcpo-bridge"]["volumes"]}
        self.assertEqual(kinds, {"volume"})


    def test_volumes_of_several_machines_name_what_they_need(self):
        """Each file of deploy/volumes: refused without its variables, and with them it replaces the volume alone."""
        plain = json.loads(config([BASE, SCALE], "--format", "json").stdout)
        files = sorted((CLONE / "deploy/volumes").glob("*.yml"))
        self.assertTrue(files)
        for file in files:
            with self.subTest(file.name):
                needed = set(re.findall(r"\$\{(\w+):\?", file.read_text(encoding="utf-8")))
                files = [BASE, SCALE, str(file.relative_to(CLONE))]
                # Compose names one of those that are missing, whichever it comes to first.
                said = config(files, "-q", unset=needed).stderr
                self.assertTrue(any(name in said for name in needed), said)
                given = {name: f"the-{name.lower()}" for name in needed}
                done = config(files, "--format", "json", given=given)
                self.assertEqual((done.returncode, done.stderr), (0, ""))
                found = json.loads(done.stdout)
                options = found["volumes"]["mcpo-jobs"].pop("driver_opts")
                self.assertFalse([name for name, value in given.items() if value not in json.dumps(options)])
                plain["volumes"]["mcpo-jobs"] = found["volumes"]["mcpo-jobs"]
                self.assertEqual(found, plain)

    def test_other_balancers_take_the_place_of_nginx(self):
        for name in ("haproxy", "traefik"):
            with self.subTest(name):
                files = [BASE, SCALE, f"deploy/{name}/docker-compose.{name}.yml"]
                done = config(files, "--format", "json")
                self.assertEqual((done.returncode, done.stderr), (0, ""))
                self.assertIn(f"{name}:", json.loads(done.stdout)["services"]["balancer"]["image"])


class TheImage(unittest.TestCase):
    def test_the_program_is_in_the_last_layers_and_the_servers_below_it(self):
        made = docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", f"mcpo-bridge:{TAG}").splitlines()
        made.reverse()  # the oldest first

        def layer(*words):
            (found,) = (number for number, text in enumerate(made) if all(word in text for word in words))
            return found

        system, servers = layer("RUN", "apt-get install", "tini"), layer("COPY", "/opt/mcpo-tools")
        program = layer("COPY", "/usr/local/bin/", "mcpo-bridge")
        self.assertLess(system, servers)
        self.assertLess(servers, program)

    def test_it_says_what_it_is_and_how_it_is_watched(self):
        image = inspect(f"mcpo-bridge:{TAG}")
        how = image["Config"]
        version = tomllib.loads((CLONE / "Cargo.toml").read_text())["workspace"]["package"]["version"]
        self.assertEqual(how["Labels"]["org.opencontainers.image.version"], version)
        self.assertEqual(how["User"], "10001:10001")
        self.assertEqual(how["StopSignal"], "SIGTERM")
        second = 10**9
        check = how["Healthcheck"]
        self.assertIn("curl -f", check["Test"][1])
        numbers = [check[name] for name in ("Interval", "Timeout", "StartPeriod")]
        self.assertEqual((numbers, check["Retries"]), ([30 * second, 10 * second, 10 * second], 3))

    def test_it_holds_what_servers_need_and_no_compiler(self):
        look = (
            "id -u; python3 -c 'import sys; print(sys.version_info >= (3, 11))'; uvx --version; curl --version; "
            "test -s $SSL_CERT_FILE && echo authorities; mcpo-bridge --version; command -v cc gcc cargo || echo none"
        )
        said = docker("run", "--rm", f"mcpo-bridge:{TAG}", "sh", "-c", look)
        lines = said.splitlines()
        self.assertEqual(lines[:2], ["10001", "True"])
        for part in ("uvx ", "curl ", "authorities", "mcpo-bridge "):
            self.assertIn(part, said)
        self.assertEqual(lines[-1], "none")

    def test_the_build_can_trust_a_companys_authority(self):
        with tempfile.TemporaryDirectory(dir=CLONE.parent) as folder:
            file = Path(folder) / "ca.pem"
            file.write_bytes(b"A company's.\n" + trustme.CA().cert_pem.bytes())
            line = file.read_text().splitlines()[5]
            as_the_build = ["--user", "0", "--volume", f"{folder}:/ca:ro", f"mcpo-bridge:{TAG}"]
            count = f"grep -cF {line} $SSL_CERT_FILE"
            seen = docker("run", "--rm", *as_the_build, "sh", "-c", f"{count}; trust /ca/ca.pem >/dev/null; {count}")
        self.assertEqual(seen.split(), ["0", "1"])

    def test_another_build_argument_adds_node(self):
        tag = f"mcpo-bridge:{TAG}-node"
        docker("build", "--build-arg", "RUNTIME=node", "--tag", tag, str(CLONE))
        self.addCleanup(docker, "image", "rm", tag)
        said = docker("run", "--rm", tag, "sh", "-c", "node --version; npx --version; uvx --version; id -u")
        self.assertRegex(said, r"^v\d+\.[\s\S]+\nuvx .*\n10001$")
