"""One running child that everybody shares: how long a call takes, and how many there are a second."""

from contextlib import ExitStack

from bench import mcp
from bench.contender import Fault, Missing, Target, program
from bench.contenders import Bridge, McpProxy, Mcpo, Noop, Supergateway
from bench.findings import Measured, compared, shown
from bench.load import alternating, run, under_load

ABOUT = "One running echo child behind everything, called by one caller and by 64 at once"
HEADS = ["", "c=1 p50 ms", "p99 ms", "calls/s", "CPU ms/call", "c=64 p50 ms", "p99 ms", "calls/s", "CPU ms/call", "RSS MB", "cold s", "errors"]
BODY = '{"text":"call {n} ' + "x" * 50 + '"}'
TEXT = {"text": "call {n} " + "x" * 50}
MANY = 64


def measure(bench):
    child = str(program("echo"))
    shared = {"child": {"command": child, "mode": "shared"}}
    ours = Bridge(bench.binary, shared)
    plain = {"child": {"command": child}}
    wanted = [
        (Noop(), lambda one: {"no-op": one.target(BODY)}),
        (ours, doors),
        (Mcpo(plain), lambda one: {"mcpo": Target(one.port, "/child/echo", BODY)}),
        (Supergateway([child], stateful=True), lambda one: {"supergateway": session(one)}),
        (McpProxy([child]), lambda one: {"mcp-proxy": session(one)}),
    ]
    found = Measured("echo", ABOUT, HEADS)
    with ExitStack() as stack:
        targets = {}
        for contender, reach in wanted:
            try:
                bench.use(contender)
                stack.enter_context(contender)
                targets |= {name: (contender, target) for name, target in reach(contender).items()}
            except (Missing, Fault) as why:
                found.missing(contender.name, why)
        one = alternating(jobs(bench, targets, 1) | {"stdio": lambda: over_stdio(bench, child)}, bench.rounds, found.missing)
        many = alternating(jobs(bench, targets, MANY), bench.rounds, found.missing)
        memory = {name: contender.memory()["VmRSS"] / 2**20 for name, (contender, _) in targets.items()}
        cold = {name: contender.cold for name, (contender, _) in targets.items()}
    for name in sorted(one, key=lambda name: one[name]["p50_ms"]):
        rest = many.get(name)
        cells = [name, *row(one[name]), *(row(rest) if rest else ["-"] * 4)]
        errors = one[name]["errors"] + (rest["errors"] if rest else 0)
        if errors:
            found.notes.append(f"{name}: {one[name]['first_error'] or rest['first_error']}")
        found.rows.append([*cells, shown(memory.get(name), 1), shown(cold.get(name)), str(errors)])
    found.chart = {name: measured["per_second"] for name, measured in many.items()}
    value = lambda of, name, key: of[name][key] if name in of else None  # noqa: E731
    p50, other = value(one, "bridge", "p50_ms"), value(one, "mcpo", "p50_ms")
    found.verdicts.append(compared("shared echo, c=1: p50", "≤ 1/4 of mcpo's", p50, other, 1 / 4, unit=" ms"))
    rate = value(many, "bridge", "per_second")
    for name, bound, must in [("mcpo", 10, "≥ 10 × mcpo's"), ("no-op", 0.5, "≥ 0.5 of a no-op axum POST")]:
        other = value(many, name, "per_second")
        found.verdicts.append(compared("shared echo, c=64: calls/s", must, rate, other, bound, at_most=False))
    return found


def doors(bridge):
    return {
        "bridge": Target(bridge.port, "/mcpo/child/echo", BODY),
        "bridge, MCP session": mcp.with_session(bridge.port, "/mcp/child", "echo", TEXT),
        "bridge, MCP 2026": mcp.modern(bridge.port, "/mcp/child", "echo", TEXT),
    }


def session(peer):
    return mcp.with_session(peer.port, "/mcp", "echo", TEXT)


def jobs(bench, targets, connections):
    options = ["--connections", connections, "--threads", 1 if connections == 1 else 2]
    options += ["--warm", bench.seconds / 4, "--seconds", bench.seconds]
    return {
        name: lambda contender=contender, target=target: under_load(contender, target, *options)
        for name, (contender, target) in targets.items()
    }


def over_stdio(bench, child):
    first = [mcp.message("initialize", mcp.HELLO, 1), mcp.message("notifications/initialized")]
    line = [program("load"), "--warm", bench.seconds / 4, "--seconds", bench.seconds, "--body", mcp.call("echo", TEXT)]
    for one in first:
        line += ["--first", one]
    return run([*line, "--stdio", child])


def row(measured):
    cpu = measured.get("cpu_ms")
    return [shown(measured[key], 3) for key in ("p50_ms", "p99_ms")] + [shown(measured["per_second"]), shown(cpu, 3)]
