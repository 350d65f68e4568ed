"""One user floods the bridge, and nine others must not notice.

For each mode a bridge is started with a server of its own. Nine users call once a second, first alone and
then beside one who sends 500 calls in 50 chats and keeps 1,200 in the air. Held: no 429 for the nine, their
p95 at most twice as long or 50 ms more than alone, whichever is more (medians of the runs), and none of them
loses the process in which his counter stands.
"""

import argparse
import asyncio
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from bridge import BINARY, Bridge, Failed, fixture

USERS = [f"user{number}" for number in range(9)]
CHATS = 50
FIRST = 500
IN_THE_AIR = 1200
START = 60


def serving(binary, mode, folder):
    settings = {"MCPO_INSTALL": "false", "MCPO_LOG_LEVEL": "WARNING"}
    return Bridge(binary, folder, {"echo": fixture("echo_server.py", mode=mode)}, settings)


class Client:
    """One connection, which is opened again where the bridge has closed it."""

    def __init__(self, address, user):
        self.address, self.user, self.stream = address, user, None

    async def call(self, chat, tool, arguments):
        """The status and the body of the answer."""
        if self.stream is None:
            self.stream = await asyncio.open_connection(*self.address, limit=1 << 20)
        reader, writer = self.stream
        body = json.dumps(arguments).encode()
        head = (
            f"POST /mcpo/echo/{tool} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"X-OpenWebUI-User-Id: {self.user}\r\nX-OpenWebUI-Chat-Id: {chat}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        status = int(lines[0].split()[1])
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
        answer = await reader.readexactly(int(headers.get("content-length", 0)))
        if headers.get("connection") == "close":
            self.close()
        return status, answer

    def close(self):
        if self.stream is not None:
            self.stream[1].close()
            self.stream = None


async def modest(address, user, seconds, mode, seen):
    """One of the nine: a call a second, counted by the process of his chat."""
    client = Client(address, user)
    for turn in range(seconds):
        due = time.monotonic() + 1
        began = time.perf_counter()
        try:
            status, answer = await client.call("chat", "counter", {})
        except (OSError, asyncio.IncompleteReadError) as fault:
            client.close()
            status, answer = 0, str(fault).encode()
        seen["times"].append(time.perf_counter() - began)
        seen["statuses"][status] = seen["statuses"].get(status, 0) + 1
        if status == 200 and mode == "stateful":
            told = json.loads(answer)
            count = told["result"] if isinstance(told, dict) else told
            if count <= seen["counts"].get(user, 0):
                seen["lost"] += 1
            seen["counts"][user] = count
        await asyncio.sleep(max(0, due - time.monotonic()))
    client.close()


async def one_of_the_flood(address, number, counts):
    """Calls again and again, in one of the chats."""
    client = Client(address, "mallory")
    while True:
        try:
            status, _ = await client.call(f"chat{number % CHATS}", "counter", {})
        except (OSError, asyncio.IncompleteReadError) as fault:
            client.close()
            status = type(fault).__name__
        counts[status] = counts.get(status, 0) + 1
        if status != 200:
            # As a client that reads Retry-After, only less patient.
            await asyncio.sleep(0.2)


async def flood(address):
    """Floods until its input ends, and prints what it got."""
    counts = {}
    calls = [asyncio.create_task(one_of_the_flood(address, number, counts)) for number in range(FIRST)]
    await asyncio.sleep(1)
    calls += [asyncio.create_task(one_of_the_flood(address, number, counts)) for number in range(FIRST, IN_THE_AIR)]
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    print(json.dumps(counts))


@contextlib.asynccontextmanager
async def flooding(address):
    """A flood by a process of its own, so that the times of the nine are not those of a busy client."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, "--flood", str(address[1]), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    counts = {}
    try:
        yield counts
        out, _ = await process.communicate(b"")
        counts.update(json.loads(out))
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def run(binary, mode, seconds):
    """A time alone, a time beside the flood: the p95 of both, and what broke a rule."""
    seen = {"counts": {}, "lost": 0}
    with tempfile.TemporaryDirectory(prefix="mcpo-fairness-") as folder, serving(binary, mode, folder) as bridge:
        address = ("127.0.0.1", bridge.port)
        warm = {**seen, "times": [], "statuses": {}}
        # The server is learnt, and each of the nine has his process.
        until = time.monotonic() + START
        while True:
            client = Client(address, "warm")
            status, _ = await client.call("chat", "counter", {})
            client.close()
            if status == 200 or time.monotonic() > until:
                break
            await asyncio.sleep(0.2)
        await asyncio.gather(*(modest(address, user, 2, mode, warm) for user in USERS))
        alone = {**warm, "times": [], "statuses": {}}
        await asyncio.gather(*(modest(address, user, seconds, mode, alone) for user in USERS))
        beside = {**alone, "times": [], "statuses": {}}
        async with flooding(address) as flood:
            await asyncio.gather(*(modest(address, user, seconds, mode, beside) for user in USERS))
    p95 = [sorted(part["times"])[int(len(part["times"]) * 0.95)] for part in (alone, beside)]
    return {"p95": p95, "alone": alone["statuses"], "beside": beside["statuses"], "lost": beside["lost"], "flood": flood}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--binary", default=str(BINARY))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--modes", default="stateful,stateless,shared")
    parser.add_argument("--flood", type=int, metavar="PORT", help=argparse.SUPPRESS)
    args = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if args.flood:
        return asyncio.run(flood(("127.0.0.1", args.flood)))
    if not os.access(args.binary, os.X_OK):
        raise SystemExit(f"{args.binary} is not there: make build, or --binary target/debug/mcpo-bridge")
    failed = False
    for mode in args.modes.split(","):
        runs = []
        for number in range(args.runs):
            try:
                done = asyncio.run(run(args.binary, mode, args.seconds))
            except Failed as failed:
                raise SystemExit(str(failed)) from None
            runs.append(done)
            print(
                f"{mode} {number + 1}: p95 {done['p95'][0] * 1000:.1f} ms alone, {done['p95'][1] * 1000:.1f} ms beside; "
                f"the nine got {done['beside']}, {done['lost']} lost a process; the flood got {done['flood']}",
                flush=True,
            )
        alone, beside = (statistics.median(one["p95"][part] for one in runs) for part in (0, 1))
        rules = {
            "only 200 for the nine": all(set(one["beside"]) == {200} for one in runs),
            "no process lost": all(one["lost"] == 0 for one in runs),
            f"p95 {alone * 1000:.1f} ms -> {beside * 1000:.1f} ms": beside <= max(2 * alone, alone + 0.05),
        }
        for rule, held in rules.items():
            print(f"{mode}: {'pass' if held else 'FAIL'}: {rule}", flush=True)
            failed = failed or not held
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
