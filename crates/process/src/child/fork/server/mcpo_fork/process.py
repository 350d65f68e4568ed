"""Sets up a forked process like one that was started separately."""

import os
import sys
import types

from .imports import ImportRecorder
from .randomness import reseed


def decode_pairs(pairs):
    """Environment variables as bytes; JSON has them as Latin-1."""
    return {name.encode("latin-1"): value.encode("latin-1") for name, value in pairs}


def reset_cached_paths(cwd=None, home=None):
    """Resets the folder and the home that the standard library and common packages keep."""
    modules = sys.modules
    if "tempfile" in modules:
        modules["tempfile"].tempdir = None
    if "site" in modules:
        modules["site"].USER_BASE = modules["site"].USER_SITE = None
    if "sysconfig" in modules and modules["sysconfig"]._CONFIG_VARS:
        base = os.path.join(home, ".local") if home else ""
        modules["sysconfig"]._CONFIG_VARS["userbase"] = base
    if "multiprocessing.process" in modules:
        modules["multiprocessing.process"].ORIGINAL_DIR = cwd
    if hasattr(modules.get("rich"), "_IMPORT_CWD"):
        modules["rich"]._IMPORT_CWD = cwd


def set_environment(given, changed, before, now):
    """`changed` are variables that the interpreter, its launcher or imports have changed."""
    os.environb.clear()
    os.environb.update(given)
    for name, value in changed.items():
        if value is None:
            os.environb.pop(name, None)
        else:
            os.environb[name] = value.replace(before, now)


def set_up_process(begin, request, folder, changed):
    """Sets folder, environment, arguments and random state."""
    os.chdir(request["cwd"])
    set_environment(decode_pairs(request["env"]), changed, os.fsencode(folder), os.fsencode(os.getcwd()))
    reset_cached_paths(os.getcwd(), os.environ.get("HOME"))
    __import__("time").tzset()
    reseed()
    sys.argv = [begin["name"], *request["argv"]]
    sys.orig_argv = [*sys.orig_argv[:-1], *begin["written"], *request["argv"]]
    if request["learn"]:
        sys.meta_path.insert(0, ImportRecorder(begin["learnt"]))


def run(begin, code, keep):
    """Runs the program like the interpreter, which gets its exceptions."""
    main = types.ModuleType("__main__")
    main.__dict__.update(__annotations__={}, __builtins__=__builtins__)
    keep.append(sys.modules["__main__"])  # a module without references is cleared
    sys.modules["__main__"] = main
    for name in [name for name in sys.modules if name.split(".")[0] == __package__]:
        keep.append(sys.modules.pop(name))
    if "module" in begin:
        import runpy

        if not (getattr(sys.flags, "safe_path", False) or sys.flags.isolated):
            sys.path.insert(0, os.getcwd())
        runpy._run_module_as_main(begin["module"])
        return
    from importlib.machinery import SourceFileLoader

    path = begin["file"]
    main.__dict__.update(__file__=path, __cached__=None, __loader__=SourceFileLoader("__main__", path))
    exec(code or compiled(path), main.__dict__)


def compiled(path):
    with open(path, "rb") as file:
        return compile(file.read(), path, "exec", dont_inherit=True)
