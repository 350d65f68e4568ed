"""Two hundred users, and what each of them may rightly be answered."""

import asyncio
import itertools
import json
import random
import secrets
import time
from collections import Counter
from dataclasses import dataclass, field

from client import Broken, Refused
from machine import RETENTION

OUTCOMES = ("answered", "refused", "failed", "hung up")
# The bridge is full, is starting, is stopping, or does not know its servers yet: nothing was done.
REFUSALS = {429, 503}
MODERN, LEGACY = "2026-07-28", "2025-11-25"
LINK_LIFE = 100  # seconds; the bridge of the soak keeps a link for 120
# The time of the last call is written at least once in an eighth of the retention.
FORGOTTEN = RETENTION * 7 / 8
STATEFUL = {"chat", "reloaded", "excel"}


@dataclass
class Tally:
    sent: int = 0
    outcomes: Counter = field(default_factory=Counter)
    by_kind: Counter = field(default_factory=Counter)
    reasons: Counter = field(default_factory=Counter)
    wrong: list = field(default_factory=list)
    links: list = field(default_factory=list)

    def failed(self, reason):
        self.reasons[reason] += 1


class Wrong(Exception):
    """An answer that cannot be right."""


class Chat:
    """A user's chat, one call at a time; what its counter must say next."""

    def __init__(self, user, name):
        self.headers = {"X-OpenWebUI-User-Id": user, "X-OpenWebUI-Chat-Id": name}
        self.turn, self.count, self.canary = asyncio.Lock(), {}, f"{user}/{name}"
        self.last = self.began = time.monotonic()

    def begins(self, server):
        """A call to this server begins. After a rest as long as the retention the folder of the chat, in which
        only stateful servers work, may be a new one, of which nothing is known."""
        if server not in STATEFUL:
            return
        self.began = time.monotonic()
        if self.began - self.last > FORGOTTEN:
            self.count.clear()

    def answered(self, server):
        """That call was answered, and so has been in the folder; one that was refused has not."""
        if server in STATEFUL:
            self.last = self.began

    def heed(self, server, notice):
        """Memory was lost, and an answer has said so: this server counts from nothing."""
        if "restarted" in notice:
            self.count[server] = 0

    def check(self, server, answer):
        """A count goes on by one."""
        value = int(answer["result"] if isinstance(answer, dict) else answer)
        before = self.count.get(server)
        self.count[server] = value
        # After a call whose outcome is unknown, any number may be right.
        if before is not None and value != before + 1:
            raise Wrong(f"{self.canary} {server}: {answer!r} after {before}")


class Load:
    def __init__(self, door, users, real):
        self.door, self.tally, self.over = door, Tally(), False
        self.chats = [Chat(f"user-{number % users}", f"chat-{number}") for number in range(users * 2)]
        self.numbers = itertools.count()
        self.acts = [
            (self.counts, 24), (self.saves, 12), (self.fresh, 10), (self.shared, 16), (self.legacy, 8),
            (self.modern, 10), (self.uploads, 6), (self.hangs_up, 6), (self.old_link, 8), (self.reads_health, 2),
        ]  # fmt: skip
        if real:
            self.acts += [(self.workbook, 4), (self.clock, 4)]

    async def work(self):
        """One of the callers, until the soak is over."""
        acts, weights = zip(*self.acts)
        while not self.over:
            act = random.choices(acts, weights)[0]
            chat = random.choice(self.chats)
            async with chat.turn:
                await self.count(act, chat)
            await asyncio.sleep(random.uniform(0, 0.2))

    async def count(self, act, chat):
        tally, name = self.tally, act.__name__
        tally.sent += 1
        try:
            outcome = await act(chat)
        except Refused:
            outcome = "refused"
            tally.reasons["no connection"] += 1
        except Broken:
            outcome = "failed"
            tally.failed("connection broken")
            chat.count.clear()
        except TimeoutError:
            outcome = "failed"
            tally.wrong.append(f"{name}: no answer in time")
            chat.count.clear()
        except (Wrong, ValueError, KeyError, IndexError, TypeError) as error:
            outcome = "answered"
            tally.wrong.append(f"{name}: {error!r}")
            chat.count.clear()
        tally.outcomes[outcome] += 1
        tally.by_kind[f"{name} {outcome}"] += 1

    # ---- one request each ----

    async def call(self, chat, server, tool, **arguments):
        """The JSON of a call that was answered, else the outcome as text."""
        chat.begins(server)
        answer = self.settled(chat, await self.door.ask("POST", f"/mcpo/{server}/{tool}", chat.headers, arguments))
        if not isinstance(answer, Outcome):
            chat.answered(server)
        if isinstance(answer, dict):
            chat.heed(server, str(answer.get("notice", "")))
        return answer

    def settled(self, chat, answer):
        if answer.status == 200:
            return answer.json()
        kind = problem(answer)
        self.tally.reasons[f"{answer.status} {kind}"] += 1
        if answer.status in REFUSALS:
            return Outcome("refused")
        if answer.status in {500, 502, 504}:
            chat.count.clear()
            return Outcome("failed")
        raise Wrong(f"{answer.status} {answer.body[:300]!r}")

    async def counts(self, chat):
        server = random.choice(["chat", "reloaded"])
        answer = await self.call(chat, server, "counter")
        if isinstance(answer, Outcome):
            return answer.text
        chat.check(server, answer)
        return "answered"

    async def saves(self, chat):
        name, canary = f"f{next(self.numbers)}.txt", f"{chat.canary} {secrets.token_hex(8)}"
        answer = await self.call(chat, random.choice(["chat", "fresh"]), "write_file", name=name, content=canary)
        if isinstance(answer, Outcome):
            return answer.text
        (url,) = (file["url"] for file in answer["files"] if file["name"] == name)
        self.tally.links.append((time.monotonic(), url, canary))
        return "answered"

    async def old_link(self, _):
        """A link that was handed out works for as long as it was promised, whatever was killed since."""
        now = time.monotonic()
        self.tally.links = [link for link in self.tally.links if now - link[0] < LINK_LIFE]
        if not self.tally.links:
            return await self.reads_health(_)
        _, url, canary = random.choice(self.tally.links)
        answer = await self.door.ask("GET", "/" + url.split("/", 3)[3])
        if answer.status in REFUSALS:
            return "refused"
        if (answer.status, answer.body) != (200, canary.encode()):
            raise Wrong(f"{url}: {answer.status} {answer.body[:100]!r}")
        return "answered"

    async def fresh(self, chat):
        one, two = random.randrange(10**6), random.randrange(10**6)
        answer = await self.call(chat, "fresh", "add", a=one, b=two)
        return answer.text if isinstance(answer, Outcome) else self.same(answer, one + two)

    async def shared(self, chat):
        # Digits alone would come back as a number, as mcpo's answers do.
        canary = f"canary {secrets.token_hex(8)}"
        answer = await self.call(chat, "shared", "echo", text=canary)
        return answer.text if isinstance(answer, Outcome) else self.same(answer, canary)

    def same(self, answer, wanted):
        answer = answer["result"] if isinstance(answer, dict) else answer
        if answer != wanted:
            raise Wrong(f"{answer!r} instead of {wanted!r}")
        return "answered"

    async def legacy(self, chat):
        """`initialize`, a call, DELETE: as Open WebUI's turns. One of the three is what is counted."""
        server = random.choice(["chat", "shared", "fresh"])
        hello = rpc("initialize", protocolVersion=LEGACY, capabilities={}, clientInfo={"name": "soak", "version": "1"})
        first = await self.mcp(chat, server, hello, {})
        if isinstance(first, Outcome):
            return first.text
        session = {"Mcp-Session-Id": first.headers["mcp-session-id"], "MCP-Protocol-Version": LEGACY}
        canary = secrets.token_hex(8)
        told = rpc("tools/call", name="echo", arguments={"text": canary})
        answer = await self.mcp(chat, server, told, session)
        if isinstance(answer, Outcome):
            return answer.text
        self.has(answer, canary)
        ended = await self.door.ask("DELETE", f"/mcp/{server}", {**chat.headers, **session})
        return "refused" if ended.status in {*REFUSALS, 404} else "answered"

    async def modern(self, chat):
        server = random.choice(["chat", "shared", "fresh", ""])
        tool, canary = ("shared_echo" if server == "" else "echo"), secrets.token_hex(8)
        meta = {f"io.modelcontextprotocol/{key}": value for key, value in
                (("protocolVersion", MODERN), ("clientCapabilities", {}))}  # fmt: skip
        told = rpc("tools/call", name=tool, arguments={"text": canary}, _meta=meta)
        headers = {"MCP-Protocol-Version": MODERN, "Mcp-Method": "tools/call", "Mcp-Name": tool}
        answer = await self.mcp(chat, server, told, headers)
        if isinstance(answer, Outcome):
            return answer.text
        self.has(answer, canary)
        return "answered"

    async def mcp(self, chat, server, message, headers):
        accept = {"Accept": "application/json, text/event-stream"}
        path = f"/mcp/{server}".rstrip("/")
        chat.begins(server)
        answer = await self.door.ask("POST", path, {**chat.headers, **accept, **headers}, message)
        if answer.status == 404 and "Mcp-Session-Id" in headers:
            self.tally.reasons["404 session of a killed bridge"] += 1
            return Outcome("refused")
        if answer.status != 200:
            return self.settled(chat, answer)
        told = answer.message()
        if "error" in told:
            self.tally.failed(f"JSON-RPC {told['error']['code']}")
            chat.count.clear()
            return Outcome("failed")
        blocks = told["result"].get("content", [])
        if blocks:
            chat.answered(server)
        chat.heed(server, " ".join(str(block.get("text", "")) for block in blocks[1:]))
        return answer

    def has(self, answer, canary):
        result = answer.message()["result"]
        text = result["content"][0]["text"]
        if result.get("isError"):
            raise Wrong(f"{text!r} instead of {canary!r}")
        if text != canary:
            raise Wrong(f"{text!r} instead of {canary!r}")

    async def uploads(self, chat):
        boundary, name, canary = "soak", f"u{next(self.numbers)}.txt", secrets.token_hex(500)
        body = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
            f"{canary}\r\n--{boundary}--\r\n"
        )
        headers = {**chat.headers, "Content-Type": f"multipart/form-data; boundary={boundary}"}
        chat.begins("chat")
        answer = await self.door.ask("POST", "/files", headers, body.encode())
        if answer.status != 201:
            answer = self.settled(chat, answer)
            return answer.text
        chat.answered("chat")
        stored = answer.json()["files"][0]["name"]
        # The reading is part of the same act: it shows that the file is where tools find it.
        read = await self.call(chat, "chat", "read_file", name=stored)
        return read.text if isinstance(read, Outcome) else self.same(read, canary)

    async def hangs_up(self, chat):
        body = {"seconds": 30, "touch": f"h{next(self.numbers)}"}
        server = random.choice(["chat", "fresh", "shared"])
        chat.begins(server)
        _, writer = await self.door.send("POST", f"/mcpo/{server}/sleep", chat.headers, body)
        await asyncio.sleep(random.uniform(0, 1))
        writer.close()
        chat.count.clear()
        return "hung up"

    async def reads_health(self, _):
        answer = await self.door.ask("GET", "/health")
        if answer.status != 200 or answer.json()["status"] not in {"ok", "degraded"}:
            raise Wrong(f"/health: {answer.status} {answer.body[:300]!r}")
        return "answered"

    # ---- servers from a package index ----

    async def workbook(self, chat):
        name = f"w{next(self.numbers)}.xlsx"
        answer = await self.call(chat, "excel", "create_workbook", path=name)
        if isinstance(answer, Outcome):
            return answer.text
        if not any(file["name"] == name for file in answer["files"]):
            raise Wrong(f"no link for {name}: {json.dumps(answer)[:300]}")
        return "answered"

    async def clock(self, chat):
        answer = await self.call(chat, "time", "get_current_time", timezone="Asia/Tokyo")
        if isinstance(answer, Outcome):
            return answer.text
        if "+09:00" not in json.dumps(answer):
            raise Wrong(json.dumps(answer)[:300])
        return "answered"


@dataclass
class Outcome:
    text: str


def problem(answer):
    try:
        told = answer.json()
        return told.get("type", "").rpartition(":")[2] or told.get("title", "?")
    except (ValueError, AttributeError):
        return "no JSON"


def rpc(method, **params):
    return {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
