"""What of the bundle needs no engine: the files that are changed on their way in, and the lists."""

import json
import re
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "deploy/bundle"), str(ROOT / "deploy/docker")]

import pack  # noqa: E402
import preinstall  # noqa: E402
import sbom  # noqa: E402

IMAGES = ["ghcr.io/open-webui/open-webui:v9.9", "mcpo-bridge:9.9.9", "nginx:9.9-bookworm"]


class Files(unittest.TestCase):
    def test_the_compose_file_names_what_is_packed_and_builds_nothing(self):
        text = pack.without_build(pack.with_tags((ROOT / "docker-compose.yml").read_text(), IMAGES))
        self.assertIn("mcpo-bridge:${MCPO_IMAGE_TAG:-9.9.9}", text)
        self.assertIn("open-webui:${OPENWEBUI_TAG:-v9.9}", text)
        self.assertIn("  pull_policy: never\n\nservices:", text)
        for gone in ("build", "secrets: [", "\nsecrets:", "MCPO_BUILD"):
            self.assertNotIn(gone, text)
        for file in pack.COMPOSE[1:]:
            text = pack.with_tags((ROOT / file).read_text(), IMAGES)
            self.assertIn("nginx:${NGINX_TAG:-9.9-bookworm}", text)

    def test_a_compose_file_that_is_written_otherwise_is_noticed(self):
        with self.assertRaisesRegex(ValueError, "0 times"):
            pack.without_build("services: {}\n")

    def test_nothing_is_looked_for_in_the_internet(self):
        text = pack.without_internet((ROOT / ".env.example").read_text())
        for line in ("MCPO_INSTALL=false", "OFFLINE_MODE=true", "HF_HUB_OFFLINE=1"):
            self.assertRegex(text, f"(?m)^{line}$")

    def test_the_guides_say_the_same_commands_and_leave_nothing_open(self):
        english, japanese = (pack.guide_for(guide, "9.9.9", "archive") for guide in pack.GUIDES)
        blocks = [re.findall(r"```sh\n(.*?)```", text, re.S) for text in (english, japanese)]
        self.assertEqual(*blocks)
        self.assertIn("sha256sum -c archive.tar.sha256", blocks[0][0])
        self.assertNotRegex(english + japanese, r"\{[A-Z]+\}")

    def test_checksums_are_of_every_file(self):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "a").mkdir()
            (folder / "a/b").write_text("x")
            pack.write_checksums(folder)
            self.assertEqual((folder / "SHA256SUMS").read_text(), f"{pack.digest(folder / 'a/b')}  a/b\n")


class Contents(unittest.TestCase):
    LOCK = {
        "servers": {
            "one": {"requirements": ["My_Tool[x]==1.0 ; python_version > '3' --hash=sha256:1", "b @ https://x/b.whl"]},
            "two": {"package_lock": {"packages": {"": {}, "node_modules/a/node_modules/@s/t": {"version": "2.0"}}}},
        }
    }

    def test_every_kind_of_package_is_read_and_listed_once(self):
        seen = "\n".join(
            [
                "os\tdebian\t12",
                "deb\tlibc6\t2.36-9+deb12u13\tamd64",
                "pypi\tMy.Tool\t1.0",
                "generic\tnode\t22.1.0",
                f"lock\t{json.dumps(self.LOCK)}",
            ]
        )
        self.assertEqual(
            sbom.packages(seen),
            [
                sbom.Package("deb", "debian", "libc6", "2.36-9+deb12u13", (("arch", "amd64"), ("distro", "debian-12"))),
                sbom.Package("generic", "", "node", "22.1.0"),
                sbom.Package("npm", "@s", "t", "2.0"),
                sbom.Package("pypi", "", "b", ""),
                sbom.Package("pypi", "", "my-tool", "1.0"),
            ],
        )


class ServersOfTheImage(unittest.TestCase):
    def installed(self, text, locked=None):
        """What `mcpo-bridge install` would have been told, and what it would have read."""
        with tempfile.TemporaryDirectory() as name:
            file, target = Path(name) / "image.json", Path(name) / "tools"
            file.write_text(text)
            if locked:
                file.with_name("image.json.lock").write_text(locked)
            with (
                mock.patch.object(preinstall, "indexes", return_value={"UV_DEFAULT_INDEX": "https://pypi.example"}),
                mock.patch.object(preinstall.subprocess, "run") as run,
                mock.patch.dict(preinstall.os.environ, {"GIVEN": "given"}),
            ):
                run.return_value.returncode = 3
                code = preinstall.main(file, target)
            if not run.called:
                return code, None, None, None
            command = run.call_args.args[0]
            lock = target / "mcp-servers.lock.json"
            read = Path(command[command.index("--config") + 1]).read_text()
            return code, run.call_args.kwargs["env"], read, lock.read_text() if lock.exists() else None

    def test_secrets_are_not_needed_to_install(self):
        text = '{"a": "${GIVEN} ${KEY} $${NO} ${OTHER:-x}", "b": "${file:/run/secrets/x}"}'
        code, env, read, lock = self.installed(text)
        self.assertEqual((code, lock), (3, None))
        self.assertEqual((env["GIVEN"], env["KEY"]), ("given", "the-KEY-of-later"))
        self.assertNotIn("NO", env)
        self.assertEqual(env["UV_DEFAULT_INDEX"], "https://pypi.example")
        self.assertEqual(read, text.replace("${file:/run/secrets/x}", "a-secret"))

    def test_a_lock_file_beside_it_counts_and_an_empty_file_is_none(self):
        self.assertEqual(self.installed("{}", locked="locked")[3], "locked")
        self.assertEqual(self.installed("\n"), (0, None, None, None))


if __name__ == "__main__":
    unittest.main()
