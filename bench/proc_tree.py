"""What the processes below one process use, read from /proc."""

import os
from dataclasses import dataclass
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Process:
    pid: int
    parent: int
    command: str
    cpu: float  # seconds, with those of its children that have ended

    @classmethod
    def read(cls, folder: Path):
        # The program's name may hold blanks and brackets: what counts comes after the last one.
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
        command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        return cls(int(folder.name), int(fields[1]), command.strip(), sum(map(int, fields[11:15])) / TICK)


def processes():
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            process = Process.read(folder)
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended meanwhile
        found[process.pid] = process
    return found


def children(pid, every):
    return [process for process in every.values() if process.parent == pid]


def tree(root, every):
    """`root` and all below it."""
    found = [root]
    for process in found:
        found += children(process.pid, every)
    return found


def pss(pid):
    """Bytes, each shared page counted in parts: sums over processes are what the machine holds."""
    return rollup(pid)["Pss"]


def rollup(pid):
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    values = (line.split() for line in lines)
    return {name.rstrip(":"): int(number) * 1024 for name, number, *_ in values}


def disk(folder: Path):
    """Bytes that the folder's files take on disk, and how many files and folders there are."""
    every = [folder, *folder.rglob("*")]
    return sum(path.lstat().st_blocks * 512 for path in every), len(every)


def status(pid):
    """`VmRSS` and `VmHWM`, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith(("VmRSS", "VmHWM"))}


def forget_peak(pid):
    """Lets `VmHWM` begin anew."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
