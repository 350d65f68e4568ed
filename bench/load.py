"""Puts a contender under load with `bench/programs/load.rs`, and says what it cost."""

import json
import statistics
import subprocess

from bench.contender import Fault, program

PATIENCE = 900  # seconds


def drive(target, *options, expect="", get=False):
    """One run of the driver: what it printed."""
    line = [program("load"), "--url", f"http://127.0.0.1:{target.port}{target.path}"]
    line += ["--get"] if get else ["--body", target.body]
    line += ["--expect", expect] if expect else []
    for name, value in target.headers.items():
        line += ["--header", f"{name}: {value}"]
    return run([*line, *map(str, options)])


def run(line):
    done = subprocess.run([str(part) for part in line], capture_output=True, text=True, timeout=PATIENCE)
    if done.returncode != 0:
        raise Fault(f"the load driver failed: {done.stderr[-1000:]}")
    found = json.loads(done.stdout)
    if not found["calls"]:
        raise Fault(f"no call succeeded; the first error: {found['first_error']}")
    return found


def under_load(contender, target, *options, expect=""):
    """The same with `cpu_ms`, the processor time of a call."""
    before = contender.cpu()
    found = drive(target, *options, expect=expect)
    # Calls that only warm up are work as well: they are part of what is divided.
    share = found["seconds"] / (found["seconds"] + warm(options))
    found["cpu_ms"] = (contender.cpu() - before) * 1000 * share / found["calls"]
    return found


def warm(options):
    options = list(map(str, options))
    return float(options[options.index("--warm") + 1]) if "--warm" in options else 0.0


def alternating(jobs, rounds, lost=None):
    """`jobs` (name → function) in turn, `rounds` times, each time in another order: name → medians.

    Errors are summed up, everything else is the median over the rounds. Whoever fails is told to
    `lost` with the reason, and left out from then on.
    """
    found = {name: [] for name in jobs}
    names = list(jobs)
    for turn in range(rounds):
        turn %= len(names)
        for name in names[turn:] + names[:turn]:
            if name not in found:
                continue
            try:
                found[name].append(jobs[name]())
            except Fault as why:
                if lost is None:
                    raise
                lost(name, why)
                del found[name]
    return {name: middle(runs) for name, runs in found.items()}


def middle(runs):
    keys = [key for key, value in runs[0].items() if isinstance(value, (int, float))]
    medians = {key: statistics.median(run[key] for run in runs) for key in keys}
    errors = [run["first_error"] for run in runs if run.get("first_error")]
    return medians | {"errors": sum(run.get("errors", 0) for run in runs), "first_error": errors[0] if errors else None}
