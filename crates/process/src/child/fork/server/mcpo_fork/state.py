"""The state of the process that an import can change, apart from modules."""

import os
import signal
import sys

from .randomness import DRAWS

HARMLESS = {"/dev/null", "/dev/random", "/dev/urandom"}
kept_threads = 1  # threads that exist after a fork too


def processes_below():
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", "rb") as children:
            return [int(number) for number in children.read().split()]
    except FileNotFoundError:
        return []  # a kernel without this file


def threads():
    """The number of threads, without those that end before a fork. Some libraries stop their threads before
    a fork and start them again on demand (`pthread_atfork`, as OpenBLAS does)."""
    global kept_threads
    count = len(os.listdir("/proc/self/task"))
    if count > kept_threads and len(sys._current_frames()) == 1:
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        count = len(os.listdir("/proc/self/task"))
    kept_threads = max(kept_threads, count)
    return count


def descriptors():
    found = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
        if target not in HARMLESS and target != f"/proc/{os.getpid()}/fd":
            found[number] = target
    return found


def state():
    """The state, by the reason to exclude a module that changes it."""
    random = sys.modules.get("random")
    return {
        "it starts a thread": threads(),
        "it opens a file or a socket": descriptors(),
        "it starts a process": processes_below(),
        DRAWS: random and hash(random.getstate()),
        "it sets a timer": [signal.getitimer(which) for which in range(3)],
        "it changes the working folder": os.getcwd(),
        "it waits for processes": signal.getsignal(signal.SIGCHLD),
    }
