"""Tracks imports, and finds the modules that must not be imported before a fork."""

import builtins
import os
import sys
from importlib import _bootstrap, util

from . import randomness, state


class Exclusions:
    """Modules that must not be imported before the fork, and why."""

    def __init__(self):
        self.excluded = {}
        self.found = {}
        self.watching = False
        self.importing = []  # names; the innermost import is last
        self.last_state = None  # the state of the process after the last check; `None` if not watching
        self.importers = {}  # module -> modules whose code imports it
        self.original_load, self.original_import = _bootstrap._load_unlocked, builtins.__import__

    def begin(self):
        self.last_state = state.state()
        self.watching = True
        sys.meta_path.insert(0, self)
        _bootstrap._load_unlocked = self.load_module
        builtins.__import__ = self.import_module

    def end(self):
        self.check_state()
        self.last_state = None  # it contains the working folder
        self.watching = False
        sys.meta_path.remove(self)
        _bootstrap._load_unlocked = self.original_load
        builtins.__import__ = self.original_import

    def exclude_importers(self):
        """Excludes the modules that import an excluded module, directly or not."""
        left = list(self.found)
        while left:
            name = left.pop()
            for other in self.importers.get(name, ()):
                if other not in self.found and not name.startswith(other + "."):
                    left.append(other)
                    self.exclude(f"it needs {name}", [other])
        self.importers = {}

    def exclude(self, why, names):
        for name in names:
            self.found.setdefault(name, why)

    def exclude_current(self, why):
        """Excludes the module that is being imported, and those that import it."""
        if not self.importing:
            self.exclude(why, ["?"])
            return
        *waiting, name = self.importing
        self.exclude(why, [name])
        self.exclude(f"it needs {name}", waiting)

    def is_excluded(self, name):
        return any(name == other or name.startswith(other + ".") for other in self.excluded)

    def find_spec(self, name, path=None, target=None):
        """A finder that finds nothing: excludes the importers of an excluded module."""
        if self.watching and self.is_excluded(name) and self.importing:
            self.exclude(f"it needs {name}", self.importing)

    def load_module(self, spec):
        """Replaces the interpreter's function: checks the state before and after a module's code runs."""
        if not self.watching:
            return self.original_load(spec)
        self.check_state()
        self.importing.append(spec.name)
        try:
            return self.original_load(spec)
        finally:
            self.check_state()
            self.importing.pop()

    def import_module(self, name, globals=None, locals=None, fromlist=(), level=0):
        """Replaces `__import__`: also records imports of modules that are loaded already."""
        if self.importing:
            of = globals or {}
            try:
                whole = util.resolve_name("." * level + name, of.get("__package__") or of.get("__name__"))
            except (ImportError, TypeError):
                whole = name
            for found in [whole, *(f"{whole}.{part}" for part in fromlist or ())]:
                self.importers.setdefault(found, {})[self.importing[-1]] = None
        return self.original_import(name, globals, locals, fromlist, level)

    def check_state(self):
        now, known = state.state(), self.last_state
        if now != known:
            self.last_state = now
            for why in now:
                if now[why] != known[why] and not (why == randomness.DRAWS and randomness.is_harmless(self)):
                    self.exclude_current(why)


class ImportRecorder:
    """A finder that finds nothing: writes the names of imported modules to a file, in order."""

    def __init__(self, path):
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def find_spec(self, name, path=None, target=None):
        os.write(self.file, name.encode("utf-8", "replace") + b"\n")


def preload(names, exclusions):
    """Imports the modules, and excludes those that must not be imported before a fork."""
    exclusions.begin()
    for name in names:
        if name in sys.modules or name == "__main__" or exclusions.is_excluded(name):
            continue
        try:
            __import__(name)
        except ImportError:
            pass  # it is missing in the processes too
        except BaseException as error:
            exclusions.exclude(f"its import fails: {type(error).__name__}", [name])
    exclusions.end()


def recorded_imports(path):
    """The recorded names, in the order of the first import."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return [name for name in dict.fromkeys(file.read().split("\n")) if name]
