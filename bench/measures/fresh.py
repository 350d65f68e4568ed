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
from bench.load import alternating, under_load

ABOUT = "A fresh process for every call of the time server: four callers at once, and one call each 400 ms"
HEADS = ["", "c=4 calls/s", "p50 ms", "p99 ms", "CPU ms/call", "each 400 ms: p50 ms", "p99 ms", "errors"]
CALLERS, INTERVAL = 4, 400
RIGHT = "timezone"


def measure(bench):
    found = Measured("fresh", ABOUT, HEADS)
    body = '{"timezone":"Etc/UTC"}'
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
        for name, (contender, target) in list(targets.items()):
            try:
                under_load(contender, target, "--calls", CALLERS, expect=RIGHT)
            except Fault as why:
                found.missing(name, why)
                del targets[name]
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="mcpo-bench-"))
        both = []
        for load, by_uvx in ((together, uvx_together), (paced, uvx_alone)):
            jobs = {name: lambda pair=pair, load=load: load(bench, *pair) for name, pair in targets.items()}
            jobs |= {"uvx": lambda by_uvx=by_uvx: by_uvx(bench, folder)}
            both.append(alternating(jobs, bench.rounds, found.missing))
    results = {name: (both[0][name], both[1][name]) for name in both[0] if name in both[1]}
    found.notes.append("supergateway does not wait for the children that it ends: their processor time is not in its figure")
    for name, (many, few) in results.items():
        errors = many["errors"] + few["errors"]
        cells = [many["per_second"], many["p50_ms"], many["p99_ms"], many["cpu_ms"], few["p50_ms"], few["p99_ms"]]
        found.rows.append([name, *(shown(cell) for cell in cells), str(errors)])
        if first := many.get("first_error") or few.get("first_error"):
            found.notes.append(f"{name}: {first}")
    best = next((name for name in ("bridge, fork", "bridge, exec") if name in results), None)
    rate, p50 = (results[best][0]["per_second"], results[best][1]["p50_ms"]) if best else (None, None)
    for other in ("uvx", "supergateway"):
        theirs = results[other][0]["per_second"] if other in results else None
        must = f"≥ 30 × {other}" + (" stateless" if other == "supergateway" else " per call")
        found.verdicts.append(compared("fresh process, c=4: calls/s", must, rate, theirs, 30, at_most=False))
    theirs = results["uvx"][1]["p50_ms"] if "uvx" in results else None
    label = "fresh process, a call each 400 ms: p50"
    found.verdicts.append(compared(label, "≤ 1/30 of uvx per call", p50, theirs, 1 / 30, unit=" ms"))
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


def together(bench, contender, target):
    options = ["--connections", CALLERS, "--warm", 1, "--seconds", max(2, bench.seconds * 2)]
    return under_load(contender, target, *options, expect=RIGHT)


def paced(bench, contender, target):
    return under_load(contender, target, "--interval", INTERVAL, "--calls", max(5, int(bench.seconds * 5)), expect=RIGHT)


def uvx_together(bench, folder):
    calls = max(CALLERS, int(bench.seconds * 4))
    with ThreadPoolExecutor(CALLERS) as pool:
        began = time.monotonic()
        runs = list(pool.map(lambda _: once(folder), range(calls)))
        return of(runs, calls / (time.monotonic() - began))


def uvx_alone(bench, folder):
    runs = [once(folder) for _ in range(max(2, int(bench.seconds * 1.5)))]
    return of(runs, 1000 / statistics.mean(ms for ms, _ in runs))


def once(folder):
    """Process, handshake, call, end; what it used is counted before it is killed."""
    began = time.monotonic()
    server = Uvx(servers.command("time"), folder)
    server.call(servers.TIME_TOOL, servers.TIME_ARGUMENTS)
    took = time.monotonic() - began
    return took * 1000, server.end() * 1000


def of(runs, per_second):
    times = sorted(ms for ms, _ in runs)
    cpu = statistics.mean(used for _, used in runs)
    return {"p50_ms": statistics.median(times), "p99_ms": times[-1], "cpu_ms": cpu, "per_second": per_second, "errors": 0}
