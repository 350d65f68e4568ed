"""The parent of a Python server's processes: it imports the server's modules once, and then forks.

Run by `src/child/fork/`, which speaks with it over the SEQPACKET socket that is its stdin:

    {"begin": …}     what runs. Answered by nothing.
    {"fork": …}      with four descriptors: stdin, stdout, stderr, and the socket of a supervisor.
                     The supervisor is made of this process, so that it is the new one's parent.
    {"preload": …}   import what the processes so far imported. Answered once by {"ready": …} or
                     {"unfit": why}. To begin anew without a module, this program executes itself.

Nothing runs before the fork but imports. A module whose import draws random numbers, starts a
thread, opens a file, or keeps the working folder is not imported here: each process does that
itself, as if it had been started. Standard library only; Python 3.10 and newer.
"""

import gc
import json
import os
import signal
import socket
import sys
import types

MOST = 1 << 20  # bytes of one message
ROUNDS = 10  # attempts to tell good modules from others
HARMLESS = {"/dev/null", "/dev/random", "/dev/urandom"}
REDRAWN = {
    "multiprocessing.process",  # what it draws, `forget_parent` draws anew
    "tempfile",  # seeds anew in each process
}


class Taints:
    """Modules that must not be imported before the fork, and why."""

    def __init__(self, excluded):
        self.excluded = excluded
        self.found = {}
        self.watching = False

    def add(self, why, names):
        for name in names:
            self.found.setdefault(name, why)

    def importing(self, why):
        """Whatever is being imported now, and so all that needs it."""
        if not self.watching:
            return
        frame, names = sys._getframe(1), []
        while frame:
            if frame.f_code.co_name == "<module>":
                names.append(frame.f_globals.get("__name__"))
            frame = frame.f_back
        self.add(why, [name for name in names if name and name != "__main__"] or ["?"])

    def covers(self, name):
        return any(name == other or name.startswith(other + ".") for other in self.excluded)

    def find_spec(self, name, path=None, target=None):
        """As a finder that finds nothing: who imports an excluded module is excluded too."""
        if self.watching and self.covers(name):
            self.importing(f"it needs {name}")


class Learner:
    """As a finder that finds nothing: writes down what is imported, in its order."""

    def __init__(self, path):
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def find_spec(self, name, path=None, target=None):
        if self.file is not None:
            os.write(self.file, name.encode("utf-8", "replace") + b"\n")


def watch_randomness(taints):
    """Numbers that are drawn before the fork would be the same in all processes."""

    def is_redrawn(frame):
        while frame and frame.f_globals.get("__name__") in ("random", "__main__"):
            frame = frame.f_back
        return frame and frame.f_globals.get("__name__") in REDRAWN

    def watched(draw):
        def drawn(*args, **kwargs):
            if not is_redrawn(sys._getframe(1)):
                taints.importing("it draws random numbers")
            return draw(*args, **kwargs)

        return drawn

    os.urandom = watched(os.urandom)
    if hasattr(os, "getrandom"):
        os.getrandom = watched(os.getrandom)
    import random  # not before: it keeps `os.urandom`

    seed = random.Random.seed

    def seeded(self, a=None, version=2):
        if a is None and not is_redrawn(sys._getframe(1)):
            taints.importing("it seeds a random generator")
        return seed(self, a, version)

    random.Random.seed = seeded


def processes_below():
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", "rb") as children:
            return [int(number) for number in children.read().split()]
    except FileNotFoundError:
        return []  # a kernel that does not tell


def state():
    """What an import may change of the process, apart from its modules."""
    import random

    descriptors = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
        if target not in HARMLESS and target != f"/proc/{os.getpid()}/fd":
            descriptors[number] = target
    return {
        "it starts a thread": len(os.listdir("/proc/self/task")),
        "it opens a file or a socket": descriptors,
        "it starts a process": processes_below(),
        "it draws random numbers": random.getstate(),
        "it sets a timer": [signal.getitimer(which) for which in range(3)],
        "it changes the working folder": os.getcwd(),
        "it waits for processes": signal.getsignal(signal.SIGCHLD),
    }


def suspects(name, new):
    """Of what came with a module: not the package around it, nor Python's own."""
    library = sys.stdlib_module_names
    own = {n for n in new if n.split(".")[0] not in library and not name.startswith(n + ".")}
    return own or {name}


def preload(names, taints):
    """Imports each, and looks after each whether it left something behind."""
    before, loaded = state(), set(sys.modules)
    taints.watching = True
    for name in names:
        if name in sys.modules or name == "__main__" or taints.covers(name):
            continue
        why = None
        try:
            __import__(name)
        except ImportError:
            pass  # the processes asked for it in vain too
        except BaseException as error:
            why = f"its import fails: {type(error).__name__}"
            taints.add(why, [name])
        after = state()
        for why in before:
            if after[why] != before[why]:
                taints.add(why, suspects(name, set(sys.modules) - loaded))
        before, loaded = after, set(sys.modules)
    taints.watching = False


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
    for _ in range(8):
        for value in level:
            if id(value) in spaces:
                return spaces[id(value)]
        seen.update(map(id, level))
        referrers = gc.get_referrers(*level)
        level = [v for v in referrers if id(v) not in seen and type(v) is not types.FrameType]
        if len(level) > 5000:
            return None
    return None


def find_captured(word, taints, own):
    """Who keeps a text that names the parent's folder, or the parent's own number."""
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
    for name, variables in spaces_of_modules():
        if any(type(value) is int and value == os.getpid() for value in list(variables.values())):
            taints.add("it keeps the process's number", [name])


def forget_parent(cwd=None, home=None):
    """The standard library's own memories of folder, home and secrets."""
    modules = sys.modules
    if "tempfile" in modules:
        modules["tempfile"].tempdir = None
    if "site" in modules:
        modules["site"].USER_BASE = modules["site"].USER_SITE = None
    if "sysconfig" in modules and modules["sysconfig"]._CONFIG_VARS:
        base = os.path.join(home, ".local") if home else ""
        modules["sysconfig"]._CONFIG_VARS["userbase"] = base
    if "multiprocessing.process" in modules:
        process = modules["multiprocessing.process"]
        process.ORIGINAL_DIR = cwd
        if cwd:
            key = process.AuthenticationString(os.urandom(32))
            process.current_process()._config["authkey"] = key


def local_sources(begin):
    """Files outside of Python and its packages: they may be changed while the bridge runs."""
    fixed = tuple({sys.prefix, sys.base_prefix, os.path.dirname(os.__file__)})
    files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    files = {file for file in files if isinstance(file, str) and not file.startswith(fixed)}
    return sorted((files | {begin.get("file")}) - {None, __file__})


class Parent:
    def __init__(self):
        self.environment = dict(os.environb)
        self.folder = os.getcwd()
        # An import may look at stdin: what it finds is a pipe, as in a server.
        self.socket = socket.socket(fileno=os.dup(0))
        read, write = os.pipe()
        os.dup2(read, 0)
        os.close(read)
        os.close(write)
        self.supervisor = os.open(f"/proc/{os.getppid()}/exe", os.O_RDONLY)
        self.changed, self.code, self.begin = None, None, None
        del sys.orig_argv[sys.orig_argv.index(__file__) + 1 :]
        self.taints = Taints({})
        if not (getattr(sys.flags, "safe_path", False) or sys.flags.isolated):
            sys.path_importer_cache.pop(sys.path.pop(0), None)
        watch_randomness(self.taints)
        sys.meta_path.insert(0, self.taints)

    def set_up(self, begin):
        self.given = latin(begin.pop("env"))
        self.begin = begin
        if "file" in begin:
            unsafe = not (getattr(sys.flags, "safe_path", False) or sys.flags.isolated)
            if unsafe:
                sys.path.insert(0, os.path.dirname(os.path.realpath(begin["file"])))

    def set_up_again(self, words):
        self.set_up(words.pop(0))
        return words

    def serve(self):
        """Returns in each forked process, with what it shall be."""
        while True:
            data, descriptors, _, _ = socket.recv_fds(
                self.socket, MOST, 4, socket.MSG_CMSG_CLOEXEC
            )
            if not data:
                os._exit(0)
            message = json.loads(data)
            if "begin" in message:
                self.set_up(message["begin"])
            elif "preload" in message:
                self.prepare(learnt(self.begin["learnt"]), {}, 1)
            elif "fork" in message and self.fork(message["fork"], descriptors):
                return message["fork"]
            for descriptor in descriptors:
                os.close(descriptor)

    def prepare(self, names, excluded, number):
        self.taints.excluded = excluded
        sys.argv = [self.begin["name"], *self.begin["argv"]]
        gc.disable()
        preload(names, self.taints)
        sys.argv = [""]
        self.changed = self.changes()
        forget_parent()
        gc.collect()
        own = [self, vars(self), self.environment, self.given, self.changed, self.begin]
        own.extend(self.begin.values())
        own.append(own)
        find_captured(self.begin["sentinel"], self.taints, own)
        word, folder = self.begin["sentinel"].encode(), os.fsencode(self.folder)
        values = [(value or b"").replace(folder, b"") for value in self.changed.values()]
        if any(word in value for value in values):
            self.taints.add("its import sets a variable that names the working folder", ["?"])
        found = self.taints.found
        if found:
            if "?" in found or number >= ROUNDS or found.keys() <= excluded.keys():
                name = "?" if "?" in found else next(iter(found))
                what = "an import" if name == "?" else name
                self.answer({"unfit": f"{what} cannot be left out: {found[name]}"})
                return
            self.begin_anew(names, {**excluded, **found}, number + 1)
        if "file" in self.begin:
            with open(self.begin["file"], "rb") as file:
                self.code = compile(file.read(), self.begin["file"], "exec", dont_inherit=True)
        reasons = [f"{name} ({why})" for name, why in excluded.items()]
        sources = local_sources(self.begin)
        ready = {"modules": len(sys.modules), "left_out": reasons[:20], "sources": sources[:200]}
        gc.enable()
        gc.collect()
        gc.freeze()
        signal.signal(signal.SIGCHLD, reap)
        self.answer({"ready": ready})

    def changes(self):
        """Variables that are not as the bridge gave them; `None` for those that are gone."""
        return {
            name: os.environb.get(name)
            for name in {*self.given, *os.environb}
            if os.environb.get(name) != self.given.get(name)
        }

    def answer(self, words):
        self.socket.send(json.dumps(words).encode())

    def begin_anew(self, names, excluded, number):
        path = os.path.join(self.folder, "..", "again.json")
        with open(path, "w", encoding="utf-8") as file:
            pairs = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in self.given.items()]
            json.dump([{**self.begin, "env": pairs}, names, excluded, number], file)
        for child in processes_below():
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        os.chdir(self.folder)
        os.dup2(self.socket.fileno(), 0)
        os.execve(sys.executable, [*sys.orig_argv, path], self.environment)

    def fork(self, request, descriptors):
        """True in the new process. Its parent is a supervisor, which lets it go on."""
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        if os.fork():
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            return False
        try:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            may_go, go = os.pipe()
            os.setpgid(0, 0)
            child = os.fork()
            if child:
                os.setpgid(child, child)
                self.supervise(child, descriptors[3], go, request["cwd"])
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            os.close(go)
            if not os.read(may_go, 1):
                os._exit(1)
            for number, descriptor in enumerate(descriptors[:3]):
                os.dup2(descriptor, number)
            for descriptor in (*descriptors, may_go, self.supervisor):
                os.close(descriptor)
            self.socket.close()
            return True
        except OSError:
            os._exit(1)

    def supervise(self, child, control, go, cwd):
        os.dup2(control, 0)
        os.dup2(go, 1)
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        try:
            os.chdir(cwd)
        except OSError:
            pass  # the server will say so
        os.execve(self.supervisor, ["mcpo-bridge", "__adopt", str(child)], {})

    def become(self, request):
        """In the new process: what it would be if it had been started by itself."""
        self.taints.watching = False
        sys.meta_path.remove(self.taints)
        os.chdir(request["cwd"])
        changed = self.changed if self.changed is not None else self.changes()
        os.environb.clear()
        os.environb.update(latin(request["env"]))
        # What the interpreter, what starts it, and imports change.
        before, now = os.fsencode(self.folder), os.fsencode(os.getcwd())
        for name, value in changed.items():
            if value is None:
                os.environb.pop(name, None)
            else:
                os.environb[name] = value.replace(before, now)
        forget_parent(os.getcwd(), os.environ.get("HOME"))
        __import__("time").tzset()
        __import__("random").seed()
        sys.argv = [self.begin["name"], *request["argv"]]
        sys.orig_argv = [*sys.orig_argv[:-1], *self.begin["written"], *request["argv"]]
        if request["learn"]:
            sys.meta_path.insert(0, Learner(self.begin["learnt"]))

    def main_module(self):
        main = types.ModuleType("__main__")
        main.__dict__.update(__annotations__={}, __builtins__=__builtins__)
        self.replaced = sys.modules["__main__"]  # it would be emptied if nobody had it
        sys.modules["__main__"] = main
        return main

    def run(self):
        """As the interpreter would; whatever is raised goes to the interpreter."""
        main = self.main_module()
        if "module" in self.begin:
            import runpy

            if not (getattr(sys.flags, "safe_path", False) or sys.flags.isolated):
                sys.path.insert(0, os.getcwd())
            runpy._run_module_as_main(self.begin["module"])
            return
        from importlib.machinery import SourceFileLoader

        path = self.begin["file"]
        main.__dict__.update(__file__=path, __cached__=None, __loader__=SourceFileLoader("__main__", path))
        if self.code is None:
            with open(path, "rb") as file:
                self.code = compile(file.read(), path, "exec", dont_inherit=True)
        exec(self.code, main.__dict__)


def latin(pairs):
    """Bytes, each of which came as the character of its number."""
    return {name.encode("latin-1"): value.encode("latin-1") for name, value in pairs}


def reap(*_):
    """Supervisors that ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def learnt(path):
    """Names of modules, in the order in which they were imported first."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return [name for name in dict.fromkeys(file.read().split("\n")) if name]


def given():
    """What this program told itself before it began anew; no object of it stays."""
    with open(sys.argv[1], encoding="utf-8") as file:
        return json.load(file)


parent = Parent()
if len(sys.argv) > 1:
    parent.prepare(*parent.set_up_again(given()))
parent.become(parent.serve())
parent.run()
