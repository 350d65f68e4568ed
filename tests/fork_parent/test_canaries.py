"""Many forked processes, each of which looks for traces of the others; and that each look can fail.

MCPO_TEST_PYTHON names the interpreter: of an environment with mcp 2.x and numpy, theirs are looked
at too. MCPO_FORKS is how many.
"""

import os
import shutil
import sys
import tempfile
import unittest
from pathlib import Path

from drive import PROGRAM, ForkParent

HERE = Path(__file__).parent
PYTHON = os.environ.get("MCPO_TEST_PYTHON", sys.executable)
FORKS = int(os.environ.get("MCPO_FORKS", 100))
MODULES = ["random", "secrets", "tempfile", "uuid", "ssl", "hashlib", "multiprocessing", "numpy", "numpy.random"]
MODULES += ["mcp.types", "mcp.server", "mcp.server.mcpserver", "canary_holds", "canary"]
# What protects, what it looks like without, and who notices.
SABOTAGE = {
    "random": ("randomness.py", 'modules["random"].seed()', 'modules["random"].seed(1)'),  # CPython seeds too
    "authkey": ("randomness.py", "process.AuthenticationString(os.urandom(32))", 'process.AuthenticationString(b"x" * 32)'),
    "numpy": ("randomness.py", 'modules["numpy.random.mtrand"].seed()', "pass"),
    "key at import": ("imports.py", "def exclude(self, why, names):", "def exclude(self, why, names):\n        return\n"),
    "request state": ("imports.py", "def exclude(self, why, names):", "def exclude(self, why, names):\n        return\n"),
    "generator at import": ("imports.py", "def exclude(self, why, names):", "def exclude(self, why, names):\n        return\n"),
    "file": ("imports.py", "def exclude(self, why, names):", "def exclude(self, why, names):\n        return\n"),
    "kept": ("imports.py", "def exclude(self, why, names):", "def exclude(self, why, names):\n        return\n"),
    "temporary": ("process.py", 'modules["tempfile"].tempdir = None', 'modules["tempfile"].tempdir = "/tmp"'),
    "cwd": ("process.py", 'os.chdir(request["cwd"])', "pass"),
    "variable": ("process.py", "os.environb.update(given)", "os.environb.update({**given, b'MCPO_WORKDIR': b'/'})"),
}


def shared(told):
    """Names of what was not the process's own."""
    found = set()
    seen = {}
    for one, work in told:
        for name, value in one["own"].items():
            if (name, value) in seen:
                found.add(name)
            seen[name, value] = work
        found |= {name for name, value in one["one"].items() if int(value) != 1}
        found |= {name for name, value in one["folder"].items() if value != str(work)}
        if not one["own"]["temporary"].startswith(str(work.parent)):
            found.add("temporary")
    return found


class Canaries(unittest.TestCase):
    def parent(self, program=PROGRAM):
        parent = ForkParent(MODULES, HERE / "canary.py", PYTHON, [HERE], program)
        self.assertIn("ready", parent.word)
        return parent

    def test_nothing_is_shared(self):
        with self.parent() as parent:
            left = " ".join(parent.word["ready"]["left_out"])
            self.assertIn("canary_holds (", left)
            told = [parent.fork() for _ in range(FORKS)]
        self.assertEqual(shared(told), set())
        print(f"{FORKS} processes of {PYTHON}: {', '.join(told[0][0]['own'])}", file=sys.stderr)

    def test_a_constant_may_equal_the_process_number(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder)
            (path / "keeps.py").write_text("import os\nNUMBER = int(os.readlink('/proc/self'))\n")

            def before(number):
                (path / "constant.py").write_text(f"LIMIT = {number}\n")

            with ForkParent(["constant", "keeps"], HERE / "canary.py", PYTHON, [path], before=before) as parent:
                left = parent.word["ready"]["left_out"]
            self.assertEqual(left, ["keeps (it keeps the process's number)"])

    def test_each_canary_can_fail(self):
        with self.parent() as parent:
            present = parent.fork()[0]
        names = {name for group in present.values() for name in group}
        for canary, (file, protection, without) in SABOTAGE.items():
            if canary not in names:
                continue
            with self.subTest(canary), tempfile.TemporaryDirectory() as folder:
                program = Path(folder) / "program"
                shutil.copytree(PROGRAM, program, ignore=shutil.ignore_patterns("__pycache__"))
                text = (program / "mcpo_fork" / file).read_text()
                self.assertEqual(text.count(protection), 1, protection)
                (program / "mcpo_fork" / file).write_text(text.replace(protection, without))
                with self.parent(program) as parent:
                    self.assertIn(canary, shared([parent.fork() for _ in range(3)]))


if __name__ == "__main__":
    unittest.main()
