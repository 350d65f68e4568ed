"""Who keeps the folder in which the parent imports, or the parent's own number."""

import gc
import os
import sys
import types

DEEPEST = 8  # references from a module's variables to what it keeps
MOST = 5000  # referrers of one level; a module that is that far away is not found


def atoms(holder, seen):
    """Texts that an object holds, those in its untracked containers included."""
    for value in gc.get_referents(holder):
        kind = type(value)
        if kind is str or kind is bytes:
            yield value
        elif kind in (dict, tuple) and not gc.is_tracked(value) and id(value) not in seen:
            seen.add(id(value))
            yield from atoms(value, seen)


def spaces_of_modules():
    """Names and variables; not everything in there is a module."""
    for name, module in list(sys.modules.items()):
        variables = getattr(module, "__dict__", None)
        if type(variables) is dict and name != "__main__":
            yield name, variables


def owner(holder):
    """The module whose variables lead to an object."""
    spaces = {id(variables): name for name, variables in spaces_of_modules()}
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


def find(word, taints, own):
    """Holds against modules what they keep; `own` are the parent's own objects."""
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
        taints.add("it keeps the working folder or what names it", [owner(holder) or "?"])


def own_numbers():
    """Variables of modules that equal this process's number: each keeps it, or is a constant that
    happens to equal it (`stat.S_IFDIR` is 16384, and the numbers in a container are small)."""
    return [
        [name, variable]
        for name, variables in spaces_of_modules()
        for variable, value in list(variables.items())
        if type(value) is int and value == os.getpid()
    ]
