"""What the program itself holds: idle, and after many calls."""

from bench.contender import Fault, Missing, Target, program
from bench.contenders import Bridge, Mcpo
from bench.findings import Measured, compared, shown
from bench.load import drive
from bench.measures.echo import BODY, MANY

ABOUT = "Resident memory of the program itself, its child left out: idle, after half as many calls to warm up, after all of them"
HEADS = ["", "idle MB", "warm MB", "after all MB", "calls"]


def measure(bench):
    found = Measured("memory", ABOUT, HEADS)
    child = str(program("echo"))
    ours = Bridge(bench.binary, {"child": {"command": child, "mode": "shared"}})
    theirs = Mcpo({"child": {"command": child}})
    held = {}
    for contender, path, calls in ((ours, "/mcpo/child/echo", bench.calls), (theirs, "/child/echo", bench.calls // 10)):
        try:
            bench.use(contender)
            with contender:
                held[contender.name] = steps(contender, Target(contender.port, path, BODY), calls)
        except (Missing, Fault) as why:
            found.missing(contender.name, why)
            continue
        found.rows.append([contender.name, *(shown(one / 1e6, 1) for one in held[contender.name]), f"{calls:,}"])
    idle = {name: steps[0] / 1e6 for name, steps in held.items()}
    found.verdicts.append(compared("RSS idle", "≤ 1/3 of mcpo's", idle.get("bridge"), idle.get("mcpo"), 1 / 3, unit=" MB"))
    if "bridge" in held:
        _, warm, after = (one / 1e6 for one in held["bridge"])
        label = f"RSS after {bench.calls:,} calls"
        found.verdicts.append(compared(label, "no growth after warm-up (≤ 1.05)", after, warm, 1.05, unit=" MB"))
    return found


def steps(contender, target, calls):
    """Idle, after half as many calls to warm up, after all."""
    idle = contender.memory()["VmRSS"]
    load = ["--connections", MANY, "--threads", 2, "--calls"]
    drive(target, *load, calls // 2)
    warm = contender.memory()["VmRSS"]
    drive(target, *load, calls)
    return idle, warm, contender.memory()["VmRSS"]
