"""What the measuring asks of everything that it measures."""

import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from bench.proc_tree import processes, status, tree

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".tools"
START, END = 180, 30  # seconds to serve a first call, and to end
SHOWN = 20  # lines of a log


class Fault(Exception):
    """The run is worth nothing: says what happened, to what, and what to do where that is known."""


class Missing(Exception):
    """A contender cannot be had on this machine, and why: the run goes on, and says so."""


@dataclass(frozen=True)
class Target:
    """What is sent where: `{n}` in the body is the number of the call."""

    port: int
    path: str
    body: str = ""
    headers: dict = field(default_factory=dict)


class Contender(AbstractContextManager):
    """A program that serves between `__enter__` and `__exit__`, and leaves nothing behind."""

    #: A short word for tables and plots.
    name: str
    #: What runs, for the record.
    version = ""
    #: What puts it under .tools/: commands of this checkout.
    installs: list[list[str]] = []
    #: Whether an end with anything but 0 is a fault.
    ends_well = False

    def command(self) -> list[str]:
        raise NotImplementedError

    def environment(self) -> dict:
        return {}

    def serves(self) -> bool:
        """Whether it takes calls by now."""
        return listens(self.port)

    def install(self):
        """Gets what it needs to run, before anything runs; `Missing` if that cannot be had."""
        for command in self.installs:
            try:
                done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
            except OSError as fault:
                raise Missing(str(fault)) from fault
            if done.returncode != 0:
                said = [line for line in done.stderr.splitlines() if line.strip()][-SHOWN:]
                raise Missing("\n    ".join([f"{shlex.join(command)} failed:", *said]))

    def __enter__(self):
        self._folder = tempfile.TemporaryDirectory(prefix="mcpo-bench-")
        self.folder = Path(self._folder.name)
        try:
            self.start()
        except BaseException:
            self.stop(lost=True)
            self._folder.cleanup()
            raise
        return self

    def __exit__(self, kind, *_):
        try:
            self.stop(lost=kind is not None)
        finally:
            self._folder.cleanup()

    def start(self):
        """Starts it and returns how many seconds passed until it served."""
        self.port = free_port()
        command = [str(part) for part in self.command()]
        began = time.monotonic()
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=plain_environment() | self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # its children end with it
            )
        while not self.serves():
            if (ended := self.process.poll()) is not None:
                raise Fault(f"{self.name}: ended with {ended}{self.tail()}")
            if time.monotonic() > began + START:
                raise Fault(f"{self.name}: serves nothing after {START} s{self.tail()}")
            time.sleep(0.002)
        self.cold = time.monotonic() - began
        return self.cold

    def stop(self, lost=False):
        process = getattr(self, "process", None)
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            ended = process.wait(END)
        except subprocess.TimeoutExpired:
            ended = f"nothing, {END} s after SIGTERM"
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
        if self.ends_well and ended != 0 and not lost:
            raise Fault(f"{self.name}: ended with {ended}{self.tail()}")

    def cpu(self):
        """Seconds of processor time, by it and everything below it, so far."""
        every = processes()
        return sum(process.cpu for process in tree(every[self.process.pid], every))

    def memory(self):
        """`VmRSS` and `VmHWM` of its main process, in bytes."""
        return status(self.process.pid)

    def tail(self):
        lines = self._log.read_text(errors="replace").splitlines()[-SHOWN:]
        return "\n".join(["; its log ends with", *lines]) if lines else "; its log is empty"

    @property
    def _log(self):
        return self.folder / "log"


def plain_environment():
    """Nobody's settings, and the tools of this checkout."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MCPO_", "RUST_"))}
    return kept | {"PATH": f"{TOOLS / 'node/node_modules/.bin'}:{os.environ['PATH']}:{TOOLS / 'bin'}"}


def listens(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def program(name):
    """One of `bench/programs/`, built by scripts/bench."""
    return ROOT / "target/release/examples" / f"bench-{name}"


def note(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)
