"""A fresh process for every call: the time server, four callers, and one who calls now and then."""

import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from bench import mcp, servers
from bench.contender import Fault, Missing, Target
from bench.contenders import Bridge, Supergateway
from bench.contenders.uvx import Uvx
from bench.findings import Measured, compared, shown
from bench.load import under_load

ABOUT = "A fresh process for every call of the time server: four callers at once, and one call each 400 ms"
HEADS = ["", "c=4 calls/s", "p50 ms", "p99 ms", "CPU ms/call", "each 400 ms: p50 ms", "p99 ms", "errors"]
CALLERS, INTERVAL = 4, 400
RIGHT = "timezone"


def measure(bench):
    found = Measured("fresh", ABOUT, HEADS)
    body = '{"timezone":"Etc/UTC"}'
    results = {}
    with ExitStack() as stack:
        targets = {}
        for name, contender in contenders(bench, found):
            try:
                bench.use(contender)
                if isinstance(contender, Bridge):
                    bench.prepare(contender)
                    reach = lambda one: Target(one.port, "/mcpo/time/get_current_time", body)  # noqa: E731
                else:
                    reach = lambda one: mcp.without_session(one.port, "/mcp", servers.TIME_TOOL, servers.TIME_ARGUMENTS)  # noqa: E731
                stack.enter_context(contender)
                targets[name] = contender, reach(contender)
            except (Missing, Fault) as why:
                found.missing(name, why)
        for name, (contender, target) in targets.items():
            try:
                results[name] = loads(bench, contender, target, name)
            except Fault as why:
                found.missing(name, why)
    results["uvx"] = by_uvx(bench)
    for name, (many, paced) in results.items():
        errors = many["errors"] + paced["errors"]
        cells = [many["per_second"], many["p50_ms"], many["p99_ms"], many["cpu_ms"], paced["p50_ms"], paced["p99_ms"]]
        found.rows.append([name, *(shown(cell) for cell in cells), str(errors)])
        if first := many.get("first_error") or paced.get("first_error"):
            found.notes.append(f"{name}: {first}")
    best = next((name for name in ("bridge, fork", "bridge, exec") if name in results), None)
    rate, paced = (results[best][0]["per_second"], results[best][1]["p50_ms"]) if best else (None, None)
    for other in ("uvx", "supergateway"):
        theirs = results[other][0]["per_second"] if other in results else None
        must = f"≥ 30 × {other}" + (" stateless, same command" if other == "supergateway" else " per call")
        found.verdicts.append(compared("fresh process per call, c=4: calls/s", must, rate, theirs, 30, at_most=False))
    theirs = results["uvx"][1]["p50_ms"]
    label = "fresh process, a call each 400 ms: p50"
    found.verdicts.append(compared(label, "≤ 1/30 of uvx per call", paced, theirs, 1 / 30, unit=" ms"))
    return found


def contenders(bench, found):
    exec_ = {"launch": "exec"} if bench.forks else {}
    yield "bridge, exec", Bridge(bench.binary, {"time": servers.ours("time", mode="stateless", **exec_)}, "bridge, exec")
    if bench.forks:
        fork = servers.ours("time", mode="stateless", launch="fork")
        yield "bridge, fork", Bridge(bench.binary, {"time": fork}, "bridge, fork")
    else:
        found.rows.append(["bridge, fork", "not yet", *["-"] * (len(HEADS) - 2)])
    yield "supergateway", Supergateway(servers.command("time"), stateful=False)


def loads(bench, contender, target, name):
    seconds = bench.seconds * (4 if name == "supergateway" else 2)
    many = under_load(contender, target, "--connections", CALLERS, "--warm", 2, "--seconds", seconds, expect=RIGHT)
    paced = under_load(contender, target, "--interval", INTERVAL, "--calls", max(5, int(bench.seconds * 5)), expect=RIGHT)
    return many, paced


def by_uvx(bench):
    """Process, handshake, call, end; what it used is counted before it is killed."""
    command = servers.command("time")
    with tempfile.TemporaryDirectory(prefix="mcpo-bench-") as folder:

        def once(_=None):
            began = time.monotonic()
            server = Uvx(command, folder)
            server.call(servers.TIME_TOOL, servers.TIME_ARGUMENTS)
            took = time.monotonic() - began
            return took * 1000, server.end() * 1000

        once()
        calls = max(8, int(bench.seconds * 6))
        with ThreadPoolExecutor(CALLERS) as pool:
            began = time.monotonic()
            together = list(pool.map(once, range(calls)))
            took = time.monotonic() - began
        alone = [once() for _ in range(max(3, calls // 4))]
    return of(together, calls / took), of(alone, 1000 / statistics.mean(ms for ms, _ in alone))


def of(runs, per_second):
    times = sorted(ms for ms, _ in runs)
    cpu = statistics.mean(used for _, used in runs)
    return {"p50_ms": statistics.median(times), "p99_ms": times[-1], "cpu_ms": cpu, "per_second": per_second, "errors": 0}
