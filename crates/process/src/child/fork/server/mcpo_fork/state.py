"""What an import may change of the process, apart from its modules."""

import os
import signal
import sys

from .draws import DRAWS

HARMLESS = {"/dev/null", "/dev/random", "/dev/urandom"}
lasting = 1  # threads that were there even after a fork


def processes_below():
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", "rb") as children:
            return [int(number) for number in children.read().split()]
    except FileNotFoundError:
        return []  # a kernel that does not tell


def threads():
    """Those that a fork would lose. A library that takes its own down before each fork, to start
    them again when it needs them (`pthread_atfork`, as OpenBLAS does), loses none."""
    global lasting
    count = len(os.listdir("/proc/self/task"))
    if count > lasting and len(sys._current_frames()) == 1:
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        count = len(os.listdir("/proc/self/task"))
    lasting = max(lasting, count)
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
    """Under the words that say what a module does that changes it."""
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
