"""The bridge under load, and the processes that belong to it: started, killed, counted."""

import json
import os
import random
import shutil
import signal
import sys
from pathlib import Path

from bench.proc_tree import processes, tree

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from bridge import BINARY, FIXTURES, ROOT, Bridge

RETENTION = 60  # seconds that a folder is kept after its last call


class Machine(Bridge):
    """A copy of the binary and of the test servers in a folder of their own: whatever runs from there is ours."""

    def __init__(self, folder, binary, tools, real):
        self.binary, self.real, self.turn = folder / "mcpo-bridge-under-test", real, 0
        shutil.copy2(binary, self.binary)
        for name in ("echo_server.py", "wire.py"):
            shutil.copy2(FIXTURES / name, folder / name)
        settings = {
            "MCPO_TOOLS_DIR": str(tools),
            "MCPO_FILE_EXPIRY": "120",
            "MCPO_FILE_RETENTION": str(RETENTION),
            "MCPO_STATEFUL_CLEANUP_INTERVAL": "10",
            "MCPO_QUEUE_TIMEOUT": "30",
            "MCPO_LOG_LEVEL": "INFO",
        }
        super().__init__(self.binary, folder, {}, settings)
        self.reload()

    def reload(self):
        """Another content each time, for a reload that changes one server and leaves the others alone."""
        self.turn += 1
        echo = {"command": "python3", "args": [str(self.folder / "echo_server.py")], "timeout": 60}
        servers = {
            "chat": {**echo, "mode": "stateful", "idle_timeout": 60},
            "fresh": {**echo, "mode": "stateless"},
            "shared": {**echo, "mode": "shared"},
            "reloaded": {**echo, "mode": "stateful", "idle_timeout": 60, "env": {"TURN": str(self.turn)}},
        }
        if self.real:
            example = json.loads((ROOT / "mcp-servers.json.example").read_text(encoding="utf-8"))["mcpServers"]
            servers.update({name: example[name] for name in ("excel", "time")})
        self.write_config(servers)

    def ours(self):
        """Every process that runs our copy of the binary, one of our servers, or works in our jobs folder."""
        found = []
        for process in processes().values():
            if process.pid == os.getpid():
                continue
            if str(self.folder) in process.command or any(
                target.startswith(str(self.folder)) for target in links(process.pid, "exe", "cwd")
            ):
                found.append(process)
        return found

    def victims(self):
        """What can be killed now, by kind."""
        kinds = {"supervisor": [], "nursery": [], "fork parent": [], "child": []}
        every = processes()
        for process in self.ours():
            words = process.command.split()
            above = every.get(process.parent)
            if process.pid == self.process.pid:
                continue
            if "__supervise" in words or "__adopt" in words:
                kinds["supervisor"].append(process.pid)
            elif "__nursery" in words:
                kinds["nursery"].append(process.pid)
            elif above and "__nursery" in above.command.split():
                kinds["fork parent"].append(process.pid)
            elif not process.command.startswith(str(self.binary)):
                kinds["child"].append(process.pid)
        return {kind: pids for kind, pids in kinds.items() if pids}

    def kill_one(self, with_bridge):
        """SIGKILLs a random one of a random kind; says which kind."""
        kinds = self.victims()
        if with_bridge and self.process.poll() is None:
            kinds["bridge"] = [self.process.pid]
        if not kinds:
            return None
        kind = random.choice(sorted(kinds))
        try:
            os.kill(random.choice(kinds[kind]), signal.SIGKILL)
        except ProcessLookupError:
            return None
        if kind == "bridge":
            self.process.wait()
            self.launch()
        return kind

    def sample(self):
        """Resident MiB, descriptors and threads of the bridge; folders of chats; processes in all."""
        folder = Path(f"/proc/{self.process.pid}")
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        return {
            "memory": int(status["VmRSS"].split()[0]) / 1024,
            "descriptors": len(os.listdir(folder / "fd")),
            "threads": int(status["Threads"]),
            "folders": sum(1 for entry in os.scandir(self.folder / "jobs") if not entry.name.startswith(".")),
            "processes": len(tree(processes()[self.process.pid], processes())),
        }


def links(pid, *names):
    for name in names:
        try:
            yield os.readlink(f"/proc/{pid}/{name}")
        except OSError:
            continue
