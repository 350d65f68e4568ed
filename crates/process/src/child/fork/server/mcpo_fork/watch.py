"""Which modules are being imported, and which must not be before a fork."""

import builtins
import os
import sys
from importlib import _bootstrap, util

from . import draws, state


class Taints:
    """Modules that must not be imported before the fork, and why."""

    def __init__(self):
        self.excluded = {}
        self.found = {}
        self.watching = False
        self.importing = []  # names, the innermost last
        self.known = None  # of the process's state, what nobody is to be blamed for any more
        self.needed = {}  # by module, who asked for it while it was imported itself
        self.load, self.ask = _bootstrap._load_unlocked, builtins.__import__

    def begin(self):
        self.known = state.state()
        self.watching = True
        sys.meta_path.insert(0, self)
        _bootstrap._load_unlocked = self.loaded
        builtins.__import__ = self.asked

    def end(self):
        self.look()
        self.known = None  # it names the folder
        self.watching = False
        sys.meta_path.remove(self)
        _bootstrap._load_unlocked = self.load
        builtins.__import__ = self.ask

    def close_over(self):
        """Who needs what must not be imported must not be imported either."""
        left = list(self.found)
        while left:
            name = left.pop()
            for other in self.needed.get(name, ()):
                if other not in self.found and not name.startswith(other + "."):
                    left.append(other)
                    self.add(f"it needs {name}", [other])
        self.needed = {}

    def add(self, why, names):
        for name in names:
            self.found.setdefault(name, why)

    def blame(self, why):
        """The module that is being imported, and with it those that wait for it."""
        if not self.importing:
            self.add(why, ["?"])
            return
        *waiting, name = self.importing
        self.add(why, [name])
        self.add(f"it needs {name}", waiting)

    def covers(self, name):
        return any(name == other or name.startswith(other + ".") for other in self.excluded)

    def find_spec(self, name, path=None, target=None):
        """As a finder that finds nothing: who imports an excluded module is excluded too."""
        if self.watching and self.covers(name) and self.importing:
            self.add(f"it needs {name}", self.importing)

    def loaded(self, spec):
        """In place of the interpreter's own: looks before and behind each module's code."""
        if not self.watching:
            return self.load(spec)
        self.look()
        self.importing.append(spec.name)
        try:
            return self.load(spec)
        finally:
            self.look()
            self.importing.pop()

    def asked(self, name, globals=None, locals=None, fromlist=(), level=0):
        """In place of the interpreter's own: sees those too that are imported already."""
        if self.importing:
            of = globals or {}
            try:
                whole = util.resolve_name("." * level + name, of.get("__package__") or of.get("__name__"))
            except (ImportError, TypeError):
                whole = name
            for found in [whole, *(f"{whole}.{part}" for part in fromlist or ())]:
                self.needed.setdefault(found, {})[self.importing[-1]] = None
        return self.ask(name, globals, locals, fromlist, level)

    def look(self):
        now, known = state.state(), self.known
        if now != known:
            self.known = now
            for why in now:
                if now[why] != known[why] and not (why == draws.DRAWS and draws.are_harmless(self)):
                    self.blame(why)


class Learner:
    """As a finder that finds nothing: writes down what is imported, in its order."""

    def __init__(self, path):
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def find_spec(self, name, path=None, target=None):
        if self.file is not None:
            os.write(self.file, name.encode("utf-8", "replace") + b"\n")


def preload(names, taints):
    """Imports each."""
    taints.begin()
    for name in names:
        if name in sys.modules or name == "__main__" or taints.covers(name):
            continue
        try:
            __import__(name)
        except ImportError:
            pass  # the processes asked for it in vain too
        except BaseException as error:
            taints.add(f"its import fails: {type(error).__name__}", [name])
    taints.end()


def learnt(path):
    """Names of modules, in the order in which they were imported first."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return [name for name in dict.fromkeys(file.read().split("\n")) if name]
