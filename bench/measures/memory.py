"""What the program itself holds: idle, and after many calls.

An allocator keeps what it was given and gives some of it back now and then, so that resident memory
goes up and down by some per cent while nothing grows. Two single looks would compare two points of
such a saw: compared is the highest of the later half with the highest of the earlier half.
"""

from bench.contender import Fault, Missing, Target, program
from bench.contenders import Bridge, Mcpo
from bench.findings import Measured, compared, shown
from bench.load import drive
from bench.measures.echo import BODY, MANY

ABOUT = "Resident memory of the program itself, its child left out: idle, and the highest while the earlier and the later half of the calls were made"
HEADS = ["", "idle MB", "earlier half MB", "later half MB", "calls"]
LOOKS = 12


def measure(bench):
    found = Measured("memory", ABOUT, HEADS)
    child = str(program("echo"))
    ours = Bridge(bench.binary, {"child": {"command": child, "mode": "shared"}})
    theirs = Mcpo({"child": {"command": child}})
    held = {}
    for contender, path, calls in ((ours, "/mcpo/child/echo", bench.calls), (theirs, "/child/echo", bench.calls // 50)):
        try:
            bench.use(contender)
            with contender:
                looks = looked(contender, Target(contender.port, path, BODY), calls)
        except (Missing, Fault) as why:
            found.missing(contender.name, why)
            continue
        idle, looks = looks[0], looks[1:]
        held[contender.name] = idle, max(looks[: LOOKS // 2]), max(looks[LOOKS // 2 :])
        found.rows.append([contender.name, *(shown(one, 1) for one in held[contender.name]), f"{calls:,}"])
        each = ", ".join(shown(one, 1) for one in looks)
        found.notes.append(f"{contender.name}, MB after each {calls // LOOKS:,} calls: {each}")
    idle = {name: three[0] for name, three in held.items()}
    found.verdicts.append(compared("RSS idle", "≤ 1/3 of mcpo's", idle.get("bridge"), idle.get("mcpo"), 1 / 3, unit=" MB"))
    if "bridge" in held:
        _, earlier, later = held["bridge"]
        label = f"RSS after {bench.calls:,} calls"
        must = f"no growth after {bench.calls // 2:,} (≤ 1.05)"
        found.verdicts.append(compared(label, must, later, earlier, 1.05, unit=" MB"))
    return found


def looked(contender, target, calls):
    """MB when idle, and after each of the looks' calls."""
    looks = [contender.memory()["VmRSS"] / 1e6]
    for _ in range(LOOKS):
        drive(target, "--connections", MANY, "--threads", 2, "--calls", calls // LOOKS)
        looks.append(contender.memory()["VmRSS"] / 1e6)
    return looks
