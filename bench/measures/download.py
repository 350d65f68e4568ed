"""A file of 1 GB that a tool wrote, downloaded by its link; nginx serves the very same file."""

import json
from contextlib import ExitStack
from urllib.parse import urlsplit

from bench import mcp
from bench.contender import Fault, Missing, Target, program
from bench.contenders import Bridge, Nginx
from bench.findings import Measured, compared, shown
from bench.load import alternating, drive
from bench.proc_tree import forget_peak

HEADS = ["", "MB/s", "CPU ms/GB", "four at once: MB/s", "memory above idle MB", "errors"]
NAME = "large.bin"


def measure(bench):
    size = bench.download << 20
    about = f"A file of {bench.download} MB that a tool wrote, downloaded; nginx serves the same file"
    found = Measured("download", about, HEADS)
    bridge = Bridge(bench.binary, {"child": {"command": str(program("echo")), "mode": "stateful"}})
    bench.use(bridge)
    with ExitStack() as stack:
        stack.enter_context(bridge)
        small = Target(bridge.port, publish(bridge, size // 4, "small.bin"), "")
        link = publish(bridge, size, NAME)
        idle, running = bridge.memory()["VmRSS"], {"bridge": (bridge, Target(bridge.port, link, ""))}
        forget_peak(bridge.process.pid)
        alternating(jobs({"bridge": (bridge, small)}, 4, size // 4), bench.rounds)
        above_small = (bridge.memory()["VmHWM"] - idle) / 1e6
        data = bridge.folder / "jobs/.bridge/artifacts"
        stored = max(data.glob("*/*/data"), key=lambda path: path.stat().st_size)
        nginx = Nginx(stored.parent)
        try:
            bench.use(nginx)
            stack.enter_context(nginx)
            running["nginx"] = nginx, Target(nginx.port, "/data", "")
        except (Missing, Fault) as why:
            found.missing("nginx", why)
        forget_peak(bridge.process.pid)
        one = alternating(jobs(running, 1, size), bench.rounds, found.missing)
        four = alternating(jobs(running, 4, size), bench.rounds, found.missing)
        above = (bridge.memory()["VmHWM"] - idle) / 1e6
    for name in (name for name in one if name in four):
        memory = shown(above, 1) if name == "bridge" else "-"
        cells = [one[name]["rate"], one[name]["cpu_ms"], four[name]["rate"]]
        errors = one[name]["errors"] + four[name]["errors"]
        found.rows.append([name, *(shown(cell) for cell in cells), memory, str(errors)])
    theirs = one["nginx"]["rate"] if "nginx" in one else None
    found.verdicts += [
        compared("1 GB download: MB/s", "≥ 0.7 of nginx's", one["bridge"]["rate"], theirs, 0.7, at_most=False),
        compared("1 GB download: memory above idle", "≤ 16 MB", above, 16, 1, unit=" MB"),
        compared("1 GB download: memory above idle", "flat: ≤ 1.5 × a quarter's", above, above_small, 1.5, unit=" MB"),
    ]
    return found


def publish(bridge, size, name):
    chat = {"X-OpenWebUI-User-Id": "user", "X-OpenWebUI-Chat-Id": "chat"}
    body = json.dumps({"name": name, "bytes": size})
    status, _, said = mcp.post(bridge.port, "/mcpo/child/write", body, chat, patience=300)
    if status != 200:
        raise Fault(f"the file was not published: {status} {said[:500]!r}")
    return urlsplit(json.loads(said)["files"][0]["url"]).path


def jobs(running, connections, size):
    def job(contender, target):
        before = contender.cpu()
        found = drive(target, "--connections", connections, "--threads", min(connections, 2), "--calls", connections * 2, get=True)
        whole = found["bytes"] / size
        return found | {"rate": found["bytes"] / found["seconds"] / 1e6, "cpu_ms": (contender.cpu() - before) * 1000 / whole}

    return {name: lambda pair=pair: job(*pair) for name, pair in running.items()}
