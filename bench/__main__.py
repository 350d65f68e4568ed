"""The command: which contenders, how many calls, and where the numbers go."""

import argparse
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

from bench import report
from bench.contender import Fault, Missing
from bench.contenders import (
    Bridge,
    Loopback,
    McpLegacy,
    McpModern,
    McpProxy,
    Stdio,
    Supergateway,
    SupergatewayModern,
)
from bench.echo_child import ROOT
from bench.rounds import Plan, measure

BASELINE = Stdio.name
FLOOR = Loopback.name
ONLY = (
    "contenders, comma-separated (stdio always runs): stdio,loopback,bridge,mcp-legacy,mcp-modern,"
    "supergateway,mcp-proxy, and supergateway-modern, which runs only if it is named here; a peer that cannot be installed is reported as missing"
)
BESIDE = McpLegacy.name  # what the peers are compared with


def arguments():
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="One echo child called over its bare pipes, through the bridge and through its peers, in one run.",
    )
    parser.add_argument("--calls", type=int, default=6000, help="timed calls of each contender (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=6, help="into which they are split (default %(default)s)")
    parser.add_argument("--warm", type=int, default=300, help="calls before each round that do not count (default %(default)s)")
    parser.add_argument("--bytes", type=int, default=64, help="size of each payload (default %(default)s)")
    parser.add_argument("--binary", type=Path, default=ROOT / "target" / "release" / "mcpo-bridge")
    parser.add_argument("--only", metavar="NAMES", help=ONLY)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there too")
    chosen = parser.parse_args()
    if min(chosen.rounds, chosen.bytes) < 1 or chosen.warm < 0 or chosen.calls < chosen.rounds:
        parser.error("--rounds and --bytes are at least 1, --calls at least --rounds, --warm not negative")
    return chosen


def contenders(chosen):
    binary = chosen.binary
    ours = [Bridge(binary), McpLegacy(binary), McpModern(binary)]
    every = [Stdio(), Loopback(), *ours, Supergateway(), SupergatewayModern(), McpProxy()]
    names = {contender.name for contender in every}
    # It starts a child for each call: minutes of a run, for a number that 100 calls give as well.
    usual = names - {SupergatewayModern.name}
    wanted = set(chosen.only.split(",")) | {BASELINE} if chosen.only else usual
    if unknown := wanted - names:
        raise Fault(f"no such contender: {', '.join(sorted(unknown))}; there are {', '.join(sorted(names))}")
    running = [contender for contender in every if contender.name in wanted]
    if any(isinstance(contender, Bridge) for contender in running) and not binary.is_file():
        raise Fault(f"{binary} is missing: run `cargo build --release`, or scripts/bench")
    return running


def installed(wanted):
    """Those that can run, and of the others name → why not."""
    running, missing = [], {}
    for contender in wanted:
        try:
            contender.install()
            running.append(contender)
        except Missing as why:
            missing[contender.name] = str(why)
    return running, missing


def progress(plan):
    if not sys.stderr.isatty():
        return lambda turn: None
    return lambda turn: print(f"\rround {turn + 1} of {plan.rounds} ", end="", file=sys.stderr, flush=True)


def run(chosen):
    plan = Plan(chosen.rounds, chosen.calls // chosen.rounds, chosen.warm, chosen.bytes)
    running, missing = installed(contenders(chosen))
    host = report.machine()
    versions = {contender.name: contender.version() for contender in running}
    with ExitStack() as stack:
        lines = {}
        for contender in running:
            stack.enter_context(contender)
            lines[contender.name] = contender.connect()
            stack.callback(lines[contender.name].close)
        results = measure(lines, plan, progress(plan))
    if sys.stderr.isatty():
        print("\r" + " " * 20 + "\r", end="", file=sys.stderr)
    # Printed only now: a bridge that does not end well is a run that did not go well.
    tell(running, missing, plan, host, versions, results)
    if chosen.json:
        chosen.json.write_text(report.as_json(results, plan, host, versions, missing) + "\n")


def tell(running, missing, plan, host, versions, results):
    print(", ".join(f"{what} {value}" for what, value in host.items()))
    print(
        f"one caller, a call at a time: {plan.rounds} alternating rounds of {plan.calls} calls"
        f" ({plan.total} each), {plan.size} bytes, no errors\n"
    )
    width = max(map(len, [*results, *missing]))
    for contender in running:
        version = versions[contender.name]
        print(f"  {contender.name:<{width}} {contender.about}" + (f" ({version})" if version != "-" else ""))
    for name, why in missing.items():
        print(f"  {name:<{width}} MISSING, not measured: {why}")
    print("\n" + report.table(results, [name for name in (BASELINE, BESIDE) if name in results], missing))
    if {Bridge.name, FLOOR} <= results.keys():
        bridge, floor, child = (results[name].percentile(50) / 1e6 for name in (Bridge.name, FLOOR, BASELINE))
        print(
            f"\nthrough the bridge, a call takes {bridge / child:.2f} x the child's bare stdio (p50): {bridge:.3f} ms,"
            f"\nwhere the child's pipes alone take {child:.3f}, and HTTP and this client alone {floor:.3f}"
        )


def main():
    # So that `with` blocks end what they started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        run(arguments())
    except Fault as fault:
        print(f"\nbench: {fault}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
