"""Runs the official MCP conformance suite against the fixture, through the bridge or directly.

`scripts/conformance` installs what this needs and starts it. The exit code is 0 when every run
came out as expected, 1 when one did not, 2 when the suite could not be run.
"""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from serving import ALL_SERVERS, BRIDGE_SERVERS, Bridge, Direct, Fault
from suite import LEGACY, MODERN, greet, run_suite, scored_scenarios

ROOT = Path(__file__).resolve().parents[2]
BINARY = ROOT / "target/release/mcpo-bridge"

# What no bridge can answer in 2026-07-28 for a child that knows only older revisions, and why.
# Everything else has to pass; one of these that passes is an error too, and leaves the list.
BEYOND_LEGACY = {
    "input-required-result-basic-elicitation": (
        "wants the key `user_name` in inputRequests; a request of an older child carries no key, "
        "so the bridge has to make one up"
    ),
}
RUNS = [  # server, revision, what must fail; None: shown, not judged
    ("dual", LEGACY, {}),
    ("dual", MODERN, {}),
    ("legacy", LEGACY, {}),
    ("legacy", MODERN, BEYOND_LEGACY),
    ("dual-stateful", LEGACY, None),
    ("dual-stateful", MODERN, None),
    ("modern", LEGACY, {}),
    ("modern", MODERN, {}),
    ("modern-stateful", LEGACY, None),
    ("modern-stateful", MODERN, None),
]
ALL_RUNS = [  # at /mcp, each in front of servers of its own
    ("all", LEGACY, {}),
    ("all", MODERN, {}),
    ("all-legacy", LEGACY, {}),
    ("all-legacy", MODERN, BEYOND_LEGACY),
]
# Without a bridge the legacy fixture refuses 2026-07-28 altogether: what passes there passes for nothing.
DIRECT_RUNS = [
    ("dual", LEGACY, {}),
    ("dual", MODERN, {}),
    ("legacy", LEGACY, {}),
    ("legacy", MODERN, None),
]
LINE = "{:<14} {:<11} {:>7} {:>7} {:>6}  {}"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--direct", action="store_true", help="the SDK's own HTTP instead of the bridge")
    parser.add_argument("--binary", type=Path, default=BINARY, help="the bridge to run")
    parser.add_argument("--server", choices=[*BRIDGE_SERVERS, *ALL_SERVERS], help="only this server")
    parser.add_argument("--revision", choices=[LEGACY, MODERN], help="only this revision")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the suite's results and logs there")
    return parser.parse_args()


def judge(outcome, must_fail):
    """Says what is wrong with a run; nothing if it is as expected."""
    if must_fail is None:
        return
    for scenario in outcome.failed:
        if scenario not in must_fail:
            yield f"{scenario} failed: {outcome.failed[scenario]}"
    for scenario in must_fail:
        if scenario not in outcome.failed:
            yield f"{scenario} passed: take it off the list of what must fail"


def measure(serving, server, revision, results):
    begun = time.monotonic()
    url = serving.url(server)
    if isinstance(serving, Bridge):
        greet(url, revision)  # a cold start is not what the suite measures: one scenario waits only 500 ms
    outcome = run_suite(url, revision, results / f"{server}-{revision}")
    return outcome, time.monotonic() - begun


def run(serving, runs, results):
    wrong = []
    for server, revision, must_fail in runs:
        try:
            outcome, seconds = measure(serving, server, revision, results)
        except Fault as fault:
            if must_fail is not None:
                wrong.append(f"{server} {revision}: {fault}")
            print(LINE.format(server, revision, "-", len(scored_scenarios(revision)), "-", fault), flush=True)
            continue
        failed = ", ".join(outcome.failed) or "none"
        passed = outcome.scored - len(outcome.failed)
        note = f" ({outcome.warnings} warnings)" if outcome.warnings else ""
        print(LINE.format(server, revision, passed, outcome.scored, f"{seconds:.1f}", failed + note), flush=True)
        wrong += [f"{server} {revision}: {what}" for what in judge(outcome, must_fail)]
    return wrong


def servings(wanted, results):
    """What is to be run, and in front of what."""
    if wanted.direct:
        yield Direct(results), DIRECT_RUNS
        return
    yield Bridge(wanted.binary, results), RUNS
    for server, behind in ALL_SERVERS.items():
        yield Bridge(wanted.binary, results, behind), [run for run in ALL_RUNS if run[0] == server]


def main():
    wanted = arguments()
    results = wanted.keep or Path(tempfile.mkdtemp(prefix="mcpo-conformance-"))
    results.mkdir(parents=True, exist_ok=True)
    wrong, every = [], []
    print(LINE.format("server", "revision", "passed", "scored", "s", "failed"))
    try:
        for serving, runs in servings(wanted, results):
            runs = [
                (server, revision, must_fail)
                for server, revision, must_fail in runs
                if wanted.server in (None, server) and wanted.revision in (None, revision)
            ]
            every += runs
            if runs:
                with serving:
                    wrong += run(serving, runs, results)
    except Fault as fault:
        print(f"conformance: {fault}", file=sys.stderr)
        return 2
    for what in wrong:
        print("unexpected:", what)
    if not wrong and not wanted.keep:
        shutil.rmtree(results)
    else:
        print(f"results and logs: {results}")
    if not wanted.direct and any(must_fail for _, _, must_fail in every):
        for scenario, reason in BEYOND_LEGACY.items():
            print(f"not for legacy children: {scenario}: {reason}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
