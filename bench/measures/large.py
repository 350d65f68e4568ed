"""A result of 20 MB."""

from contextlib import ExitStack

from bench.contender import Fault, Missing, Target, program
from bench.contenders import Bridge, Mcpo
from bench.findings import Measured, compared, shown
from bench.load import alternating, under_load
from bench.proc_tree import forget_peak

ABOUT = "A result of 20 MB from a running child: time, and the program's peak memory above idle"
HEADS = ["", "p50 ms", "CPU ms/call", "idle MB", "peak above idle MB", "× the size", "errors"]
SIZE = 20_000_000
BODY = f'{{"bytes":{SIZE}}}'


def measure(bench):
    found = Measured("large", ABOUT, HEADS)
    child = str(program("echo"))
    wanted = [
        (Bridge(bench.binary, {"child": {"command": child, "mode": "shared"}}), "/mcpo/child/big"),
        (Mcpo({"child": {"command": child}}), "/child/big"),
    ]
    peaks, idles, jobs = {}, {}, {}
    with ExitStack() as stack:
        for contender, path in wanted:
            try:
                bench.use(contender)
                stack.enter_context(contender)
                small = Target(contender.port, path, '{"bytes":10}')
                under_load(contender, small, "--calls", 50)
            except (Missing, Fault) as why:
                found.missing(contender.name, why)
                continue
            idles[contender.name] = contender.memory()["VmRSS"]
            target = Target(contender.port, path, BODY)
            jobs[contender.name] = lambda contender=contender, target=target: one_round(contender, target, peaks)
        times = alternating(jobs, bench.rounds, found.missing)
    for name, measured in times.items():
        above = peaks[name] - idles[name]
        cells = [measured["p50_ms"], measured["cpu_ms"], idles[name] / 1e6, above / 1e6, above / SIZE]
        found.rows.append([name, *(shown(cell, 1) for cell in cells), str(measured["errors"])])
    p50 = {name: measured["p50_ms"] for name, measured in times.items()}
    found.verdicts.append(
        compared("a 20 MB result: time", "≤ 1/5 of mcpo's", p50.get("bridge"), p50.get("mcpo"), 1 / 5, unit=" ms")
    )
    if "bridge" in peaks:
        above = (peaks["bridge"] - idles["bridge"]) / 1e6
        label = "a 20 MB result: peak memory above idle"
        found.verdicts.append(compared(label, "≤ 3 × the size", above, SIZE / 1e6, 3, unit=" MB"))
    return found


def one_round(contender, target, peaks):
    forget_peak(contender.process.pid)
    measured = under_load(contender, target, "--calls", 3)
    peak = contender.memory()["VmHWM"]
    peaks[contender.name] = max(peaks.get(contender.name, 0), peak)
    return measured
