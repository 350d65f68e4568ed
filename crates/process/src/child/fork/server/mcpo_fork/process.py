"""What a forked process does first, to be as if it had been started by itself."""

import os
import sys
import types

from .draws import draw_anew
from .watch import Learner


def latin(pairs):
    """Bytes, each of which came as the character of its number."""
    return {name.encode("latin-1"): value.encode("latin-1") for name, value in pairs}


def forget_folder(cwd=None, home=None):
    """What the standard library remembers of folder and home, and what many servers import."""
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


def take_environment(given, changed, before, now):
    """`changed` is what the interpreter, what starts it, and imports change."""
    os.environb.clear()
    os.environb.update(given)
    for name, value in changed.items():
        if value is None:
            os.environb.pop(name, None)
        else:
            os.environb[name] = value.replace(before, now)


def become(begin, request, folder, changed):
    """Folder, environment, arguments, randomness."""
    os.chdir(request["cwd"])
    take_environment(latin(request["env"]), changed, os.fsencode(folder), os.fsencode(os.getcwd()))
    forget_folder(os.getcwd(), os.environ.get("HOME"))
    __import__("time").tzset()
    draw_anew()
    sys.argv = [begin["name"], *request["argv"]]
    sys.orig_argv = [*sys.orig_argv[:-1], *begin["written"], *request["argv"]]
    if request["learn"]:
        sys.meta_path.insert(0, Learner(begin["learnt"]))


def run(begin, code, keep):
    """As the interpreter would; whatever is raised goes to the interpreter."""
    main = types.ModuleType("__main__")
    main.__dict__.update(__annotations__={}, __builtins__=__builtins__)
    keep.append(sys.modules["__main__"])  # it would be emptied if nobody had it
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
