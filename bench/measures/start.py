"""From the start of the program to a document of each of three servers, for the second time."""

from bench import servers
from bench.contender import Fault, Missing
from bench.contenders import Bridge, Mcpo
from bench.findings import Measured, compared, shown

ABOUT = "From start to the documents of three real servers (time, excel, powerpoint)"
HEADS = ["", "first start s", "second start s", "CPU s until then"]
THREE = ("time", "excel", "powerpoint")


def measure(bench):
    found = Measured("start", ABOUT, HEADS)
    ours = Bridge(bench.binary, {name: servers.ours(name) for name in THREE})
    theirs = Mcpo({name: servers.plain(name) for name in THREE})
    seconds = {}
    for contender in (ours, theirs):
        try:
            bench.use(contender)
            if isinstance(contender, Bridge):
                bench.prepare(contender)
            with contender:
                first = contender.cold
                again = []
                for _ in range(bench.rounds):
                    contender.stop()
                    again.append((contender.start(), contender.cpu()))
            again.sort()
            seconds[contender.name], cpu = again[len(again) // 2]
            found.rows.append([contender.name, shown(first), shown(seconds[contender.name], 3), shown(cpu)])
        except (Missing, Fault) as why:
            found.missing(contender.name, why)
    label = "documents of three servers, second start"
    found.verdicts.append(
        compared(label, "≤ 1/10 of mcpo's", seconds.get("bridge"), seconds.get("mcpo"), 1 / 10, unit=" s")
    )
    return found
