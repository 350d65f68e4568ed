"""Finds modules that keep the parent's working folder or its process ID."""

import gc
import os
import sys
import types

DEEPEST = 8  # references from a module's variables to a value
MOST = 5000  # referrers of one level; with more, the search for the module ends


def atoms(holder, seen):
    """The texts in an object, including those in containers that the garbage collector does not track."""
    for value in gc.get_referents(holder):
        kind = type(value)
        if kind is str or kind is bytes:
            yield value
        elif kind in (dict, tuple) and not gc.is_tracked(value) and id(value) not in seen:
            seen.add(id(value))
            yield from atoms(value, seen)


def module_variables():
    """The names and variables of all modules. Other objects in `sys.modules` are omitted."""
    for name, module in list(sys.modules.items()):
        variables = getattr(module, "__dict__", None)
        if type(variables) is dict and name != "__main__":
            yield name, variables


def owner(holder):
    """The module whose variables refer to an object, directly or not."""
    spaces = {id(variables): name for name, variables in module_variables()}
    level, seen = [holder], set()
    for _ in range(DEEPEST):
        for value in level:
            if id(value) in spaces:
                return spaces[id(value)]
        seen.update(map(id, level))
        referrers = gc.get_referrers(*level)
        level = [v for v in referrers if id(v) not in seen and type(v) is not types.FrameType]
        if len(level) > MOST:
            return None
    return None


def find(word, exclusions, own):
    """Excludes modules that keep `word`; `own` are the parent's objects."""
    inside = word.encode()
    known = {id(vars(os.environ)["_data"]), id(sys.modules["posix"].environ), *map(id, own)}
    seen, holders = set(known), []
    for holder in gc.get_objects():
        if id(holder) in known or type(holder) is types.FrameType:
            continue
        for value in atoms(holder, seen):
            if (inside if type(value) is bytes else word) in value:
                holders.append(holder)
                break
    for holder in holders:
        exclusions.exclude("it keeps the working folder or what names it", [owner(holder) or "?"])


def pid_variables():
    """Variables of modules that are equal to this process's ID: kept IDs, or constants that are equal by
    chance (`stat.S_IFDIR` is 16384, and process IDs in a container are small)."""
    return [
        [name, variable]
        for name, variables in module_variables()
        for variable, value in list(variables.items())
        if type(value) is int and value == os.getpid()
    ]
