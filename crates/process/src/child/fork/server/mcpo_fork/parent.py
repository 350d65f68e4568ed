"""The fork parent itself: what it is told, and the rounds of imports."""

import gc
import json
import os
import signal
import socket
import sys

from . import captured, draws, process, state
from .watch import Taints, learnt, preload

MOST = 1 << 20  # bytes of one message
ROUNDS = 12  # attempts to tell good modules from others


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
        self.supervisor = None  # a descriptor of the program that supervises
        self.changed, self.code, self.begin = None, None, None
        self.program = sys.path.pop(0)  # the folder of this program, with or without `-P`
        sys.path_importer_cache.pop(self.program, None)
        del sys.orig_argv[sys.orig_argv.index(self.program) + 1 :]
        self.taints = Taints()
        draws.watch(self.taints)

    def live(self):
        """Returns in each forked process, when that is over."""
        if len(sys.argv) > 1:
            begin, names, excluded, number, self.supervisor = given()
            self.set_up(begin)
            if self.supervisor is None:
                self.import_to_compare(names, excluded)
            os.set_inheritable(self.supervisor, False)
            self.prepare(names, excluded, number)
        request = self.serve()
        changed = self.changed if self.changed is not None else self.changes()
        process.become(self.begin, request, self.folder, changed)
        process.run(self.begin, self.code, [self])

    def set_up(self, begin):
        self.given = process.latin(begin.pop("env"))
        self.begin = begin
        if "file" in begin and not (getattr(sys.flags, "safe_path", False) or sys.flags.isolated):
            sys.path.insert(0, os.path.dirname(os.path.realpath(begin["file"])))

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
                self.supervisor = descriptors.pop()
                self.set_up(message["begin"])
            elif "preload" in message:
                self.prepare(learnt(self.begin["learnt"]), {}, 1)
            elif "fork" in message and self.fork(message["fork"], descriptors):
                return message["fork"]
            for descriptor in descriptors:
                os.close(descriptor)

    def prepare(self, names, excluded, number):
        gc.disable()
        self.import_all(names, excluded)
        self.changed = self.changes()
        process.forget_folder()
        gc.collect()
        self.find_captured()
        if not self.taints.found:  # otherwise it begins anew, and looks then
            self.find_own_number(names, excluded)
        self.taints.close_over()
        found = self.taints.found
        if found:
            if "?" in found or number >= ROUNDS or found.keys() <= excluded.keys():
                name = "?" if "?" in found else next(iter(found))
                what = "an import" if name == "?" else name
                self.answer({"unsupported": f"{what} cannot be left out: {found[name]}"})
                return
            self.begin_anew(names, {**excluded, **found}, number + 1)
        if "file" in self.begin:
            self.code = process.compiled(self.begin["file"])
        reasons = [f"{name} ({why})" for name, why in excluded.items()]
        sources = self.local_sources()
        ready = {"modules": len(sys.modules), "left_out": reasons[:20], "sources": sources[:200]}
        gc.enable()
        gc.collect()
        gc.freeze()
        signal.signal(signal.SIGCHLD, reap)
        self.answer({"ready": ready})

    def import_all(self, names, excluded):
        self.taints.excluded = excluded
        sys.argv = [self.begin["name"], *self.begin["argv"]]
        preload(names, self.taints)
        sys.argv = [""]

    def find_own_number(self, names, excluded):
        """Compares with the same imports in a process that has another number."""
        here = captured.own_numbers()
        if not here:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        argv = [*sys.orig_argv, self.write_down(names, excluded, 1, None)]
        stdin = [(os.POSIX_SPAWN_DUP2, theirs.fileno(), 0)]
        child = os.posix_spawn(sys.executable, argv, self.environment, file_actions=stdin, setpgroup=0)
        theirs.close()
        with ours:
            there = json.loads(ours.recv(MOST) or "null")
        os.waitpid(child, 0)
        for name, variable in here:
            # A process that did not answer tells nothing.
            if there is None or [name, variable] in there:
                self.taints.add("it keeps the process's number", [name])

    def import_to_compare(self, names, excluded):
        self.import_all(names, excluded)
        self.answer(captured.own_numbers())
        os._exit(0)

    def find_captured(self):
        own = [self, vars(self), self.environment, self.given, self.changed, self.begin]
        own.extend(self.begin.values())
        own.append(own)
        captured.find(self.begin["sentinel"], self.taints, own)
        word, folder = self.begin["sentinel"].encode(), os.fsencode(self.folder)
        values = [(value or b"").replace(folder, b"") for value in self.changed.values()]
        if any(word in value for value in values):
            self.taints.add("its import sets a variable that names the working folder", ["?"])

    def changes(self):
        """Variables that are not as the bridge gave them; `None` for those that are gone."""
        return {
            name: os.environb.get(name)
            for name in {*self.given, *os.environb}
            if os.environb.get(name) != self.given.get(name)
        }

    def local_sources(self):
        """Files outside of Python and its packages: they may be changed while the bridge runs."""
        fixed = (sys.prefix, sys.base_prefix, os.path.dirname(os.__file__), self.program)
        files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
        files = {file for file in files if isinstance(file, str) and not file.startswith(fixed)}
        return sorted((files | {self.begin.get("file")}) - {None})

    def answer(self, words):
        self.socket.send(json.dumps(words).encode())

    def begin_anew(self, names, excluded, number):
        """Nothing is unloaded: this program starts again."""
        path = self.write_down(names, excluded, number, self.supervisor)
        os.set_inheritable(self.supervisor, True)
        for child in state.processes_below():
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        os.chdir(self.folder)
        os.dup2(self.socket.fileno(), 0)
        os.execve(sys.executable, [*sys.orig_argv, path], self.environment)

    def write_down(self, *rest):
        """What `given` reads in a program that starts again."""
        path = os.path.join(self.folder, "..", "again.json")
        with open(path, "w", encoding="utf-8") as file:
            pairs = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in self.given.items()]
            json.dump([{**self.begin, "env": pairs}, *rest], file)
        return path

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


def reap(*_):
    """Supervisors that ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def given():
    """What this program told itself before it began anew; no object of it stays."""
    with open(sys.argv[1], encoding="utf-8") as file:
        return json.load(file)
