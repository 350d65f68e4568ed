"""What a chat costs: memory, processor time and disk, with the example's real servers.

`scripts/sizing` starts it. docs/sizing.md has the table that follows from its figures.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.contender import ROOT, Fault
from bench.proc_tree import children, disk, processes, pss, rollup, tree

EXAMPLE = ROOT / "mcp-servers.json.example"
READY, CALL, END = 300, 120, 90  # seconds
MEGA = 1 << 20
#: What a user asks for, in order: (tool, arguments).
TASKS = {
    "excel": [
        ("create_workbook", {"path": "report.xlsx", "sheets": ["Sales"], "overwrite": True}),
        (
            "write_range",
            {
                "path": "report.xlsx",
                "sheet": "Sales",
                "at": "A1",
                "rows": [["Month", "Sales"], *([f"Month {n}", n * 10] for n in range(200))],
            },
        ),
        (
            "create_chart",
            {"path": "report.xlsx", "sheet": "Sales", "chart_type": "line", "source": "A1:B201", "at": "D2"},
        ),
    ],
    "powerpoint": [
        ("create_presentation", {"id": "deck"}),
        *(("add_slide", {"presentation_id": "deck", "layout_index": 1, "title": f"Slide {n}"}) for n in range(5)),
        ("save_presentation", {"presentation_id": "deck", "file_path": "deck.pptx"}),
    ],
}


def arguments():
    parser = argparse.ArgumentParser(prog="scripts/sizing", description=__doc__.splitlines()[0])
    parser.add_argument("--binary", type=Path, default=ROOT / "target" / "release" / "mcpo-bridge")
    parser.add_argument(
        "--chats", type=int, default=10, help="chats of each server, live together (default %(default)s)"
    )
    parser.add_argument(
        "--tools-dir", type=Path, help="a tools folder that is filled already; else one is filled first"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    chosen = parser.parse_args()
    if chosen.chats < 1:
        parser.error("--chats is at least 1")
    if not chosen.binary.is_file():
        parser.error(f"{chosen.binary} is missing: run `cargo build --release`, or scripts/sizing")
    return chosen


class Bridge:
    """The bridge with the example's servers and nobody's settings but these."""

    def __init__(self, binary: Path, root: Path, tools: Path):
        self.jobs = root / "jobs"
        self._log = (root / "bridge.log").open("wb")
        port = root / "port"
        settings = {
            "MCPO_CONFIG_FILE": str(EXAMPLE),
            "MCPO_JOBS_DIR": str(self.jobs),
            "MCPO_TOOLS_DIR": str(tools),
            "MCPO_PORT": "0",
            "MCPO_START_TIMEOUT": str(CALL),
            # Processes that are nobody's yet are not part of what a chat costs.
            "MCPO_POOL_MAX": "0",
        }
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("MCPO_", "RUST_"))}
        self.process = subprocess.Popen(
            [binary, "serve", "--port-file", port], env=inherited | settings, stdout=self._log, stderr=self._log
        )
        self._url = f"http://{self._wait(lambda: port.read_text().strip() if port.exists() else None)}"
        for server in TASKS:
            self._wait(lambda server=server: self._offers(server))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(END)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()

    def call(self, server, tool, given, chat):
        request = urllib.request.Request(
            f"{self._url}/mcpo/{server}/{tool}",
            json.dumps(given).encode(),
            {"Content-Type": "application/json", "X-OpenWebUI-User-Id": chat, "X-OpenWebUI-Chat-Id": chat},
        )
        try:
            with urllib.request.urlopen(request, timeout=CALL) as answer:
                answer.read()
        except urllib.error.HTTPError as error:
            raise Fault(f"{server}/{tool}: {error.code} {error.read()[:500]!r}") from None

    def sessions(self):
        """Per session, the processes that live for it: our supervisor and all below it. A process that was
        started by itself is below the bridge, one that was forked below its parent's nursery."""
        every = processes()
        mine = [p for p in tree(every[self.process.pid], every) if {"__supervise", "__adopt"} & {*p.command.split()[:2]}]
        return [tree(supervisor, every) for supervisor in mine]

    def parents(self):
        """Per server that forks, the process that is forked from, and the nursery above it."""
        every = processes()
        nurseries = [p for p in every.values() if p.parent == self.process.pid and "__nursery" in p.command.split()[:2]]
        return [[nursery, children(nursery.pid, every)[0]] for nursery in nurseries]

    def _offers(self, server):
        try:
            with urllib.request.urlopen(f"{self._url}/mcpo/{server}/openapi.json", timeout=CALL):
                return True
        except urllib.error.HTTPError:
            return False

    def _wait(self, seen):
        limit = time.monotonic() + READY
        while not (found := seen()):
            if self.process.poll() is not None:
                raise Fault(f"the bridge ended: {Path(self._log.name).read_text()[-2000:]}")
            if time.monotonic() > limit:
                raise Fault(f"the bridge is not ready after {READY} s; /health knows why")
            time.sleep(0.2)
        return found


def measure(bridge, chats):
    idle = rollup(bridge.process.pid)
    found, before = {}, disk(bridge.jobs)
    for server, calls in TASKS.items():
        others = {session[0].pid for session in bridge.sessions()}
        starts = []
        for number in range(chats):
            begin = time.monotonic()
            bridge.call(server, *calls[0], f"{server}-{number}")
            starts.append(time.monotonic() - begin)
            if number == 0:
                first = max(sum(pss(p.pid) for p in session) for session in bridge.sessions())
        fresh = [session for session in bridge.sessions() if session[0].pid not in others]
        cpu = [sum(process.cpu for process in session) for session in fresh]
        if len(fresh) != chats:
            raise Fault(f"{len(fresh)} sessions of {server} for {chats} chats")
        for tool, given in calls[1:]:
            for number in range(chats):
                bridge.call(server, tool, given, f"{server}-{number}")
        after = disk(bridge.jobs)
        found[server] = {
            "start_s": statistics.median(starts),
            "start_cpu_s": statistics.median(cpu),
            "processes": statistics.median(len(session) for session in fresh),
            "memory_mb": statistics.median(sum(pss(p.pid) for p in session) for session in fresh) / MEGA,
            "first_mb": first / MEGA,
            "server_mb": statistics.median(pss(session[-1].pid) for session in fresh) / MEGA,
            "supervisor_mb": statistics.median(pss(session[0].pid) for session in fresh) / MEGA,
            "disk_mb": (after[0] - before[0]) / chats / MEGA,
            "files": (after[1] - before[1]) / chats,
        }
        before = after
    parents = [sum(pss(p.pid) for p in parent) / MEGA for parent in bridge.parents()]
    return idle, rollup(bridge.process.pid), found, parents


def at_once(bridge, chats):
    """Cold starts side by side, as after a break: seconds until all are served."""
    begin = time.monotonic()
    with ThreadPoolExecutor(chats) as pool:
        jobs = [pool.submit(bridge.call, "excel", *TASKS["excel"][0], f"together-{n}") for n in range(chats)]
        for job in jobs:
            job.result()
    return time.monotonic() - begin


def main():
    chosen = arguments()
    with tempfile.TemporaryDirectory(prefix="mcpo-sizing-") as folder:
        root = Path(folder)
        tools = chosen.tools_dir or root / "tools"
        if chosen.tools_dir is None:  # the downloads are no part of what is measured
            (root / "fill").mkdir()
            with Bridge(chosen.binary, root / "fill", tools):
                pass
        with Bridge(chosen.binary, root, tools) as bridge:
            idle, full, found, parents = measure(bridge, chosen.chats)
            together = at_once(bridge, chosen.chats)
        figures = {
            "cpus": os.process_cpu_count() if hasattr(os, "process_cpu_count") else os.cpu_count(),
            "chats": chosen.chats,
            "bridge_mb": {
                "idle": idle["Pss"] / MEGA,
                "rss_idle": idle["Rss"] / MEGA,
                "full": full["Pss"] / MEGA,
                "rss_full": full["Rss"] / MEGA,
            },
            "starts_per_second": chosen.chats / together,
            "tools_mb": disk(tools)[0] / MEGA,
            "servers": found,
            "fork_parents_mb": parents,
        }
    show(figures)
    if chosen.json:
        chosen.json.write_text(json.dumps(figures, indent=2) + "\n")


def show(figures):
    bridge = figures["bridge_mb"]
    print(f"bridge: {bridge['rss_idle']:.0f} MB resident when idle, {bridge['rss_full']:.0f} MB with all chats")
    print(f"cold starts at once: {figures['starts_per_second']:.1f}/s on {figures['cpus']} CPUs")
    print(f"tools folder: {figures['tools_mb']:.0f} MB")
    parents = ", ".join(f"{megabytes:.0f} MB" for megabytes in figures["fork_parents_mb"])
    print(f"processes that are forked from: {parents or 'none'}")
    for name, server in figures["servers"].items():
        print(
            f"{name}: {server['memory_mb']:.0f} MB per session ({server['first_mb']:.0f} for the first one; "
            f"{server['processes']:.0f} processes; server {server['server_mb']:.0f}, supervisor "
            f"{server['supervisor_mb']:.1f}), start {server['start_s']:.1f} s "
            f"and {server['start_cpu_s']:.1f} s of CPU, disk {server['disk_mb']:.2f} MB in {server['files']:.0f} files"
        )


if __name__ == "__main__":
    try:
        main()
    except Fault as fault:
        raise SystemExit(f"sizing: {fault}") from None
