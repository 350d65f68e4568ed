"""New chats with the excel server: the first call, and what each further chat holds in memory."""

import json
import statistics
import tempfile
import time
from pathlib import Path

from bench import mcp, servers
from bench.contender import Fault, Missing
from bench.contenders import Bridge
from bench.contenders.uvx import Uvx
from bench.findings import Measured, compared, shown
from bench.proc_tree import processes, pss, tree

ABOUT = "New chats with the excel server, each with its own process: their first call, and their memory"
HEADS = ["", "first call p50 ms", "max ms", "CPU ms/chat", "MB PSS for each further chat", "chats"]
PAUSE = 0.5  # seconds between two new chats
MEGA = 1 << 20


def measure(bench):
    found = Measured("chat", ABOUT, HEADS)
    results = {}
    modes = {"bridge, exec": {"launch": "exec"}, "bridge, fork": {"launch": "fork"}} if bench.forks else {"bridge, exec": {}}
    if not bench.forks:
        found.rows.append(["bridge, fork", "not yet", *["-"] * (len(HEADS) - 2)])
    for name, more in modes.items():
        contender = Bridge(bench.binary, {"excel": servers.ours("excel", **more)}, name)
        try:
            bench.use(contender)
            bench.prepare(contender)
            with contender:
                results[name] = of_bridge(bench, contender)
        except (Missing, Fault) as why:
            found.missing(name, why)
    results["uvx"] = of_uvx(bench)
    for name, (times, memory, cpu) in results.items():
        median, most = statistics.median(times) * 1000, max(times) * 1000
        found.rows.append([name, shown(median), shown(most), shown(cpu * 1000), shown(memory / MEGA, 1), str(len(times))])
    best = results.get("bridge, fork") or results.get("bridge, exec")
    theirs = results["uvx"]
    ours = [statistics.median(best[0]) * 1000, best[1] / MEGA] if best else [None, None]
    uvx = statistics.median(theirs[0]) * 1000
    found.verdicts += [
        compared("first call of a new excel chat: p50", "≤ 1/10 of uvx", ours[0], uvx, 1 / 10, unit=" ms"),
        compared("memory per further excel chat (PSS)", "≤ 1/3 of uvx's", ours[1], theirs[1] / MEGA, 1 / 3, unit=" MB"),
    ]
    return found


def of_bridge(bench, bridge):
    times, held, before = [], [], bridge.cpu()
    for number in range(bench.chats):
        chat = {"X-OpenWebUI-User-Id": f"user-{number}", "X-OpenWebUI-Chat-Id": f"chat-{number}"}
        began = time.monotonic()
        body = json.dumps(servers.EXCEL_ARGUMENTS)
        status, _, said = mcp.post(bridge.port, f"/mcpo/excel/{servers.EXCEL_TOOL}", body, chat)
        times.append(time.monotonic() - began)
        if status != 200:
            raise Fault(f"excel was answered {status}: {said[:500]!r}")
        time.sleep(PAUSE)
        held.append(memory([bridge.process.pid]))
    return times, further(held), (bridge.cpu() - before) / bench.chats


def of_uvx(bench):
    times, held, running, cpu = [], [], [], 0
    with tempfile.TemporaryDirectory(prefix="mcpo-bench-") as root:
        try:
            for number in range(bench.chats):
                folder = Path(root) / str(number)
                folder.mkdir()
                began = time.monotonic()
                server = Uvx(servers.command("excel", folder), folder)
                running.append(server)
                server.call(servers.EXCEL_TOOL, servers.EXCEL_ARGUMENTS)
                times.append(time.monotonic() - began)
                time.sleep(PAUSE)
                held.append(memory([one.process.pid for one in running]))
        finally:
            cpu = sum(server.end() for server in running)
    return times, further(held), cpu / bench.chats


def memory(roots):
    every = processes()
    found = 0
    for process in (one for root in roots for one in tree(every[root], every)):
        try:
            found += pss(process.pid)
        except OSError:
            pass  # ended meanwhile
    return found


def further(held):
    """Without the first two, with whom comes what all share."""
    return (held[-1] - held[1]) / (len(held) - 2)
