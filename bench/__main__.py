"""The command: which measures, for how long, and where the numbers go."""

import argparse
import json
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

from bench import plot, report
from bench.contender import ROOT, Fault, note, program
from bench.contenders import Bridge
from bench.findings import Measured
from bench.measures import EVERY

DOCS = ROOT / "docs"


class Bench:
    """What every measure is told."""

    def __init__(self, chosen):
        self.binary = chosen.binary
        quick = chosen.quick
        self.rounds, self.seconds = (1, 1.0) if quick else (3, 2.0)
        self.chats, self.calls = (4, 24_000) if quick else (12, 600_000)
        self.download = 256 if quick else 1024  # MB
        self.versions, self._prepared = {}, set()
        self.forks = Bridge(self.binary, {}).supports_fork()

    def use(self, contender):
        """Gets it ready to be started, and remembers what it is."""
        contender.install()
        self.versions[contender.name.split(",")[0]] = contender.version

    def prepare(self, bridge):
        """Installs the bridge's servers, once in a run."""
        wanted = json.dumps({name: spec.get("args") for name, spec in bridge.servers.items()})
        if wanted not in self._prepared:
            with tempfile.TemporaryDirectory(prefix="mcpo-bench-") as folder:
                bridge.prepare(Path(folder))
            self._prepared.add(wanted)


def arguments():
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="short rounds and small numbers: to see that all of it runs")
    parser.add_argument("--only", metavar="NAMES", help=f"measures, comma-separated: {','.join(EVERY)}")
    parser.add_argument("--binary", type=Path, default=ROOT / "target" / "release" / "mcpo-bridge")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there too")
    parser.add_argument("--docs", action="store_true", help="write docs/benchmarks.md and its plot; not with --only")
    chosen = parser.parse_args()
    chosen.only = chosen.only.split(",") if chosen.only else list(EVERY)
    if unknown := set(chosen.only) - set(EVERY):
        parser.error(f"no such measure: {', '.join(sorted(unknown))}; there are {', '.join(EVERY)}")
    if chosen.docs and len(chosen.only) < len(EVERY):
        parser.error("--docs is for a whole run")
    for needed in (chosen.binary, *map(program, ("load", "noop", "echo"))):
        if not needed.is_file():
            parser.error(f"{needed} is missing: start scripts/bench, which builds it")
    return chosen


def run(chosen):
    """Whether every measure came to its end: one that fails is told, and costs none of the others."""
    bench, host, found, began = Bench(chosen), report.machine(), [], time.monotonic()
    for name in chosen.only:
        note(f"{name} ...")
        found.append(attempt(name, bench))
        print(report.of_measure(found[-1]) + "\n", flush=True)
    host["load at the end"] = report.load()
    host["the run took"] = f"{(time.monotonic() - began) / 60:.0f} minutes"
    verdicts = [verdict for measured in found for verdict in measured.verdicts]
    print(report.of_verdicts(verdicts))
    if chosen.json:
        chosen.json.write_text(report.as_json(found, host, bench.versions) + "\n")
    if chosen.docs:
        (DOCS / "benchmarks.md").write_text(report.page(found, host, bench))
        (DOCS / "benchmarks.svg").write_text(plot.svg(found))
    return all(measured.whole for measured in found)


def attempt(name, bench):
    try:
        return EVERY[name].measure(bench)
    except Exception as why:  # whatever it is, the other measures are worth having
        if not isinstance(why, Fault):
            traceback.print_exc()
        return Measured.failed(name, why)


def main():
    # So that `with` blocks end what they started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if not run(arguments()):
            note("not every measure came to its end: see above")
            return 1
    except Fault as fault:
        print(f"\nbench: {fault}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
