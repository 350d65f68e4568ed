"""Mixed load for minutes while processes are killed at random: `make soak`, or `scripts/soak --help`.

Every request is counted once: sent = answered + refused + failed + hung up. An answer is wrong if it is
another caller's, another call's, a count that jumps without a notice, or a link that does not open.
Survivors are processes that are left once the bridge has ended.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from client import Broken, Door, Refused
from load import LINK_LIFE, OUTCOMES, Load
from machine import BINARY, ROOT, Machine
from plot import svg

KILL_EVERY, SAMPLE_EVERY, RELOAD_EVERY = 3, 2, 20
SETTLE = 20  # seconds of rest before the last sample


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15, help="how long (default: 15)")
    parser.add_argument("--users", type=int, default=200, help="users, each with two chats (default: 200)")
    parser.add_argument("--callers", type=int, default=24, help="requests in the air at once (default: 24)")
    parser.add_argument("--binary", type=Path, default=BINARY)
    parser.add_argument("--no-real", action="store_true", help="leave out the servers from a package index")
    parser.add_argument("--seed", type=int, default=None, help="of the random choices; printed at the start")
    parser.add_argument("--docs", action="store_true", help="write docs/soak.md and docs/soak.svg")
    wanted = parser.parse_args()
    seed = wanted.seed if wanted.seed is not None else random.randrange(10**6)
    random.seed(seed)
    print(f"soak: {wanted.minutes:g} minutes, {wanted.users} users, {wanted.callers} callers, seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="mcpo-soak-") as folder:
        machine = Machine(Path(folder), wanted.binary, ROOT / ".run/soak-tools", not wanted.no_real)
        report = asyncio.run(soak(machine, wanted))
    print(report.text())
    if wanted.docs:
        (ROOT / "docs/soak.svg").write_text(svg(report.samples), encoding="utf-8")
        (ROOT / "docs/soak.md").write_text(report.page(seed), encoding="utf-8")
    return 0 if report.good() else 1


async def soak(machine, wanted):
    machine.launch()
    door = Door(machine.port)
    load = Load(door, wanted.users, machine.real)
    report = Report(load.tally, wanted)
    try:
        await until_ready(door)
        end = time.monotonic() + wanted.minutes * 60
        callers = [asyncio.create_task(load.work()) for _ in range(wanted.callers)]
        helpers = [
            asyncio.create_task(every(KILL_EVERY, lambda: report.kill(machine))),
            asyncio.create_task(every(SAMPLE_EVERY, lambda: report.sample(machine))),
            asyncio.create_task(every(RELOAD_EVERY, machine.reload)),
        ]
        while time.monotonic() < end:
            await asyncio.sleep(min(30, max(0.1, end - time.monotonic())))
            print(f"  {report.line()}", flush=True)
        load.over = True
        helpers[0].cancel()
        await asyncio.gather(*callers)
        await every_link_opens(load)
        await asyncio.sleep(SETTLE)
        for helper in helpers[1:]:
            helper.cancel()
        for helper in helpers[1:]:
            try:
                await helper
            except asyncio.CancelledError:
                pass
    finally:
        report.exit_code = await asyncio.to_thread(machine.end)
        left = machine.ours()
        machine.clear()
        report.survivors = [f"{process.pid} {process.command}" for process in left]
        if report.survivors:
            machine.log.rename(ROOT / ".run/soak-bridge.log")
    return report


async def until_ready(door):
    """All servers are known, and those from packages are installed."""
    limit = time.monotonic() + 300
    while time.monotonic() < limit:
        try:
            health = (await door.ask("GET", "/health")).json()
            states = [server.get("state", server.get("status")) for server in health["servers"].values()]
            if states and all(state == "ready" for state in states):
                return
        except (Refused, Broken, ValueError, KeyError):
            pass
        await asyncio.sleep(0.5)
    sys.exit("soak: the servers were not ready after 300 s; read /health")


async def every(seconds, act):
    while True:
        await asyncio.sleep(seconds)
        await asyncio.to_thread(act)


async def every_link_opens(load):
    """Those that still have time: each once, beyond what was tried in between."""
    now = time.monotonic()
    for made, _, _ in load.tally.links[:]:
        if now - made < LINK_LIFE / 2:
            load.tally.sent += 1
            try:
                outcome = await load.old_link(None)
            except Exception as error:
                outcome = "answered"
                load.tally.wrong.append(f"link at the end: {error!r}")
            load.tally.outcomes[outcome] += 1


class Report:
    def __init__(self, tally, wanted):
        self.tally, self.wanted, self.began = tally, wanted, time.monotonic()
        self.kills, self.samples, self.survivors, self.exit_code = Counter(), [], [], None

    def kill(self, machine):
        kind = machine.kill_one(with_bridge=random.random() < 0.5)
        if kind:
            self.kills[kind] += 1

    def sample(self, machine):
        try:
            self.samples.append({"second": time.monotonic() - self.began, **machine.sample()})
        except (OSError, KeyError):
            pass  # the bridge is being started again

    def line(self):
        outcomes = self.tally.outcomes
        told = ", ".join(f"{outcomes[name]} {name}" for name in OUTCOMES)
        second, wrong, kills = time.monotonic() - self.began, len(self.tally.wrong), sum(self.kills.values())
        return f"{second:5.0f} s: {self.tally.sent} sent, {told}, {wrong} wrong, {kills} kills"

    def balanced(self):
        return self.tally.sent == sum(self.tally.outcomes.values())

    def good(self):
        return self.balanced() and not self.tally.wrong and not self.survivors and self.exit_code == 0

    def text(self):
        outcomes = self.tally.outcomes
        lines = [
            f"sent {self.tally.sent} = " + " + ".join(f"{name} {outcomes[name]}" for name in OUTCOMES)
            + ("" if self.balanced() else "  DOES NOT ADD UP"),
            f"wrong answers: {len(self.tally.wrong)}",
            *(f"  {text}" for text in self.tally.wrong[:20]),
            "kills: " + (", ".join(f"{kind} {count}" for kind, count in self.kills.most_common()) or "none"),
            f"survivors: {len(self.survivors)}",
            *(f"  {text}" for text in self.survivors[:20]),
            f"exit code of the bridge: {self.exit_code}",
            "reasons: " + ", ".join(f"{reason} × {count}" for reason, count in self.tally.reasons.most_common()),
            "acts: " + ", ".join(f"{kind} {count}" for kind, count in sorted(self.tally.by_kind.items())),
        ]  # fmt: skip
        return "\n".join(lines)

    def page(self, seed):
        return (
            "# Soak\n\n"
            f"`make soak` on this commit's binary: {self.wanted.minutes:g} minutes, {self.wanted.users} users with two "
            f"chats each, {self.wanted.callers} requests in the air, all modes, both doors, files, uploads, hang-ups, a reload "
            f"every {RELOAD_EVERY} s, and a `kill -9` of a random child, supervisor, nursery, fork parent or bridge every "
            f"{KILL_EVERY} s (seed {seed}). *Refused* is what was not begun (no connection while the bridge restarts, 429, 503, "
            "a session of a bridge that was killed), *failed* what was lost with what was killed (500, 502, 504, a broken connection).\n\n"
            f"```\n{self.text()}\n```\n\n![Memory, descriptors, threads, processes and folders over time](soak.svg)\n"
        )


if __name__ == "__main__":
    sys.exit(main())
