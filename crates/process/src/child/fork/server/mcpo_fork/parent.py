"""The fork parent: its messages, and the rounds of imports."""

import gc
import json
import os
import signal
import socket
import sys

from . import captured, process, randomness, state
from .imports import Exclusions, preload, recorded_imports

MOST = 1 << 20  # bytes of one message
ROUNDS = 12  # maximum number of restarts to find the modules to exclude


class Parent:
    def __init__(self):
        self.environment = dict(os.environb)
        self.folder = os.getcwd()
        # Imports find a pipe as stdin, as in a server.
        self.socket = socket.socket(fileno=os.dup(0))
        read, write = os.pipe()
        os.dup2(read, 0)
        os.close(read)
        os.close(write)
        self.supervisor = None  # a descriptor of the supervisor's executable
        self.changed, self.code, self.begin = None, None, None
        self.program = sys.path.pop(0)  # the folder of this program, even with `-P`
        sys.path_importer_cache.pop(self.program, None)
        del sys.orig_argv[sys.orig_argv.index(self.program) + 1 :]
        self.exclusions = Exclusions()
        randomness.patch(self.exclusions)

    def run(self):
        """Serves requests; in a forked process it runs the server, and returns when that has ended."""
        if len(sys.argv) > 1:
            begin, names, excluded, number, self.supervisor = read_restart_file()
            self.set_up(begin)
            if self.supervisor is None:  # only compared with its parent: it forks nothing
                self.import_to_compare(names, excluded)
            os.set_inheritable(self.supervisor, False)
            self.prepare(names, excluded, number)
        request = self.serve()
        changed = self.changed if self.changed is not None else self.changes()
        process.set_up_process(self.begin, request, self.folder, changed)
        process.run(self.begin, self.code, [self])

    def set_up(self, begin):
        self.given = process.decode_pairs(begin.pop("env"))
        self.begin = begin
        if "file" in begin and not (getattr(sys.flags, "safe_path", False) or sys.flags.isolated):
            sys.path.insert(0, os.path.dirname(os.path.realpath(begin["file"])))

    def serve(self):
        """Handles messages; returns in a forked process, with its request."""
        while True:
            data, descriptors, _, _ = socket.recv_fds(
                self.socket, MOST, 4, socket.MSG_CMSG_CLOEXEC
            )
            if not data:
                os._exit(0)
            message = json.loads(data)
            if "begin" in message:
                self.supervisor = descriptors.pop()
                self.set_up(message["begin"])
            elif "preload" in message:
                self.prepare(recorded_imports(self.begin["learnt"]), {}, 1)
            elif "fork" in message and self.fork(message["fork"], descriptors):
                return message["fork"]
            for descriptor in descriptors:
                os.close(descriptor)

    def prepare(self, names, excluded, number):
        gc.disable()
        self.import_all(names, excluded)
        self.changed = self.changes()
        process.reset_cached_paths()
        gc.collect()
        self.find_captured()
        if not self.exclusions.found:  # otherwise it restarts, and checks again
            self.find_own_pid(names, excluded)
        self.exclusions.exclude_importers()
        found = self.exclusions.found
        if found:
            if "?" in found or number >= ROUNDS or found.keys() <= excluded.keys():
                name = "?" if "?" in found else next(iter(found))
                what = "an import" if name == "?" else name
                self.reply({"unsupported": f"{what} cannot be left out: {found[name]}"})
                return
            self.restart(names, {**excluded, **found}, number + 1)
        if "file" in self.begin:
            self.code = process.compiled(self.begin["file"])
        reasons = [f"{name} ({why})" for name, why in excluded.items()]
        sources = self.local_sources()
        ready = {"modules": len(sys.modules), "left_out": reasons[:20], "sources": sources[:200]}
        gc.enable()
        gc.collect()
        gc.freeze()
        signal.signal(signal.SIGCHLD, reap)
        self.reply({"ready": ready})

    def import_all(self, names, excluded):
        self.exclusions.excluded = excluded
        sys.argv = [self.begin["name"], *self.begin["argv"]]
        preload(names, self.exclusions)
        sys.argv = [""]

    def find_own_pid(self, names, excluded):
        """Excludes modules that keep the process ID. Another process, with another ID, imports the same modules:
        a variable that is equal to the ID in both is no constant."""
        here = captured.pid_variables()
        if not here:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        argv = [*sys.orig_argv, self.write_restart_file(names, excluded, 1, None)]
        stdin = [(os.POSIX_SPAWN_DUP2, theirs.fileno(), 0)]
        child = os.posix_spawn(sys.executable, argv, self.environment, file_actions=stdin, setpgroup=0)
        theirs.close()
        with ours:
            there = json.loads(ours.recv(MOST) or "null")
        os.waitpid(child, 0)
        for name, variable in here:
            # Without an answer, all of them may keep it.
            if there is None or [name, variable] in there:
                self.exclusions.exclude("it keeps the process's number", [name])

    def import_to_compare(self, names, excluded):
        self.import_all(names, excluded)
        self.reply(captured.pid_variables())
        os._exit(0)

    def find_captured(self):
        own = [self, vars(self), self.environment, self.given, self.changed, self.begin]
        own.extend(self.begin.values())
        own.append(own)
        captured.find(self.begin["sentinel"], self.exclusions, own)
        word, folder = self.begin["sentinel"].encode(), os.fsencode(self.folder)
        values = [(value or b"").replace(folder, b"") for value in self.changed.values()]
        if any(word in value for value in values):
            self.exclusions.exclude("its import sets a variable that names the working folder", ["?"])

    def changes(self):
        """The variables that differ from those that the bridge passed; `None` for removed ones."""
        return {
            name: os.environb.get(name)
            for name in {*self.given, *os.environb}
            if os.environb.get(name) != self.given.get(name)
        }

    def local_sources(self):
        """Loaded files outside of Python and its packages: they may change while the bridge runs."""
        fixed = (sys.prefix, sys.base_prefix, os.path.dirname(os.__file__), self.program)
        files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
        files = {file for file in files if isinstance(file, str) and not file.startswith(fixed)}
        return sorted((files | {self.begin.get("file")}) - {None})

    def reply(self, message):
        self.socket.send(json.dumps(message).encode())

    def restart(self, names, excluded, number):
        """Executes this program again without the excluded modules: Python cannot unload modules."""
        path = self.write_restart_file(names, excluded, number, self.supervisor)
        os.set_inheritable(self.supervisor, True)
        for child in state.processes_below():
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        os.chdir(self.folder)
        os.dup2(self.socket.fileno(), 0)
        os.execve(sys.executable, [*sys.orig_argv, path], self.environment)

    def write_restart_file(self, *rest):
        """Writes the arguments of a restart, or of a process to compare with."""
        path = os.path.join(self.folder, "..", "again.json")
        with open(path, "w", encoding="utf-8") as file:
            pairs = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in self.given.items()]
            json.dump([{**self.begin, "env": pairs}, *rest], file)
        return path

    def fork(self, request, descriptors):
        """Forks a supervisor and a process below it; `True` in that process, once the supervisor runs."""
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
            pass  # the server reports it
        os.execve(self.supervisor, ["mcpo-bridge", "__adopt", str(child)], {})


def reap(*_):
    """Waits for supervisors that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def read_restart_file():
    """The arguments of a restart."""
    with open(sys.argv[1], encoding="utf-8") as file:
        return json.load(file)
