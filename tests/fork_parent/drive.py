"""Speaks with a fork parent as the bridge does: what it imports and leaves out, and what it forks."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

PROGRAM = Path(__file__).parents[2] / "crates" / "process" / "src" / "child" / "fork" / "server"
# In place of `mcpo-bridge __adopt`: lets the process go on, and waits for it.
ADOPT = "import os, sys\nos.write(1, b'!')\nos.waitpid(int(sys.argv[1]), 0)\n"


class ForkParent:
    """One for a file, that was told to import these modules. `word` is its answer. `before` gets its
    process's number before it imports anything."""

    def __init__(self, modules, file, interpreter=sys.executable, path=(), program=PROGRAM, before=lambda number: None):
        self.own = tempfile.TemporaryDirectory()
        self.path = path
        job, work, env = self.folder()
        (job / "learnt").write_text("\n".join(modules))
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [interpreter, str(program)]
        self.process = subprocess.Popen(command, stdin=theirs, cwd=work, env=env)
        theirs.close()
        begin = {"file": str(file), "name": str(file), "written": [str(file)], "argv": []}
        begin |= {"env": list(env.items()), "sentinel": job.name, "learnt": str(job / "learnt")}
        with open("/proc/self/exe", "rb") as program:  # of the supervisors, as the bridge sends its own
            self.say({"begin": begin}, [program.fileno()])
        before(self.process.pid)
        self.say({"preload": {}})
        self.word = json.loads(self.socket.recv(1 << 20) or '{"unsupported": "it is gone"}')

    def folder(self):
        """Of a process, and its environment."""
        job = Path(self.own.name) / str(uuid.uuid4())
        for name in ("work", "home", "tmp"):
            (job / name).mkdir(parents=True)
        (job / "work" / "__adopt").write_text(ADOPT)
        env = {"PATH": os.environ["PATH"], "HOME": str(job / "home"), "TMPDIR": str(job / "tmp")}
        env |= {"MCPO_WORKDIR": str(job / "work"), "MCPO_JOB_ID": job.name}
        env |= {"PYTHONPATH": ":".join(map(str, self.path)), "PYTHONDONTWRITEBYTECODE": "1"}
        return job, job / "work", env

    def say(self, words, descriptors=()):
        socket.send_fds(self.socket, [json.dumps(words).encode()], descriptors)

    def fork(self):
        """What a process writes to its stdout until it has ended, as JSON."""
        _, work, env = self.folder()
        stdin, stop = os.pipe()
        read, stdout = os.pipe()
        ours, control = socket.socketpair()
        order = {"cwd": str(work), "env": list(env.items()), "argv": [], "learn": False}
        self.say({"fork": order}, [stdin, stdout, 2, control.fileno()])
        for descriptor in (stdin, stdout, stop):
            os.close(descriptor)
        control.close()
        with ours, open(read, "rb") as file:
            return json.loads(file.read()), work

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()
        self.process.wait(30)
        self.own.cleanup()
