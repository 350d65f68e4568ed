"""A server as its own documentation starts it: a process by `uvx`, spoken to by its pipes."""

import json
import os
import signal
import subprocess

from bench.contender import Fault, plain_environment
from bench.mcp import HELLO, message
from bench.proc_tree import processes, tree


class Uvx:
    """One process, from its start until `end`."""

    def __init__(self, command, folder):
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=plain_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.ask("initialize", HELLO)
        self._send(message("notifications/initialized"))

    def call(self, tool, arguments):
        result = self.ask("tools/call", {"name": tool, "arguments": arguments})
        if result.get("isError"):
            raise Fault(f"uvx: the tool failed: {result}")
        return result

    def ask(self, method, params):
        self._send(message(method, params, 1))
        for line in self.process.stdout:
            said = json.loads(line)
            if said.get("id") == 1 and "method" not in said:
                return said["result"]
        raise Fault(f"uvx: the server ended during {method}")

    def tree(self):
        every = processes()
        return tree(every[self.process.pid], every)

    def end(self):
        used = sum(process.cpu for process in self.tree())
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            pipe.close()
        return used

    def _send(self, line):
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()
