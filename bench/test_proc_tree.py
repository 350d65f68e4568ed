import os
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

from bench.proc_tree import disk, processes, pss, tree

PATIENCE = 10  # seconds


class ProcTree(unittest.TestCase):
    def test_a_tree_holds_what_its_children_start(self):
        # The shell waits for what it started, which waits for us to close its input.
        with subprocess.Popen(
            ["sh", "-c", "echo up; cat; true"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as shell:
            shell.stdout.readline()
            commands, until = {}, time.monotonic() + PATIENCE
            # Between its fork and its exec it is another shell, or nothing at all.
            while "cat" not in commands.values() and time.monotonic() < until:
                every = processes()
                found = tree(every[os.getpid()], every)
                commands = {process.pid: process.command for process in found}
            self.assertIn(shell.pid, commands)
            self.assertIn("cat", commands.values())
            self.assertGreater(pss(shell.pid), 0)
            shell.stdin.close()

    def test_disk_counts_what_lies_in_folders(self):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            (root / "a").mkdir()
            before, files = disk(root)
            (root / "a" / "b").write_bytes(os.urandom(1 << 16))
            after, more = disk(root)
            self.assertEqual((files, more), (2, 3))
            self.assertGreaterEqual(after - before, 1 << 16)


if __name__ == "__main__":
    unittest.main()
