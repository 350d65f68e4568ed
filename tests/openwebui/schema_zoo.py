"""Serves every schema of `animals.py`, and random ones, by the real bridge, and reads the documents with Open WebUI.

Every tool must be there under a good name, keep its arguments' names, types and needs, and be called by Open WebUI's own
client; an odd tool must harm no other. `schema_zoo.py --binary target/debug/mcpo-bridge [--examples N]`
"""

import argparse
import contextlib
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import converter
from animals import CUT, ZOO, of, tool
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
SERVER = ROOT / "tests/fixtures/zoo_server.py"
GOOD = tool("good_neighbour", of({"text": {"type": "string"}, "count": {"type": "integer"}}, ["text"]), {"text": "hi"})
START, LEARN = 30, 60  # seconds
CHAT = {"X-OpenWebUI-User-Id": "zoo", "X-OpenWebUI-Chat-Id": "c"}
PLAIN = ("string", "number", "integer", "boolean", "array", "object")


class Bridge:
    """The real binary; a server is a list of tools."""

    def __init__(self, binary, folder):
        self.folder, self.servers = folder, {}
        self.write()
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        flags = ["--port", self.url.rsplit(":", 1)[1], "--config", folder / "config.json"]
        flags += ["--jobs-dir", folder / "jobs", "--tools-dir", folder / "tools"]
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen([binary, *flags], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        self.until(START, lambda: self.get("/health/live")[0] == 200, "the bridge did not start")

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)

    def write(self):
        new = self.folder / "config.new"
        new.write_text(json.dumps({"mcpServers": self.servers}))
        new.rename(self.folder / "config.json")

    def serve(self, name, tools):
        """The document of a server with these tools."""
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(tools))
        self.servers[name] = {"command": sys.executable, "args": [str(SERVER), str(path)], "mode": "shared"}
        self.write()
        self.process.send_signal(signal.SIGHUP)
        found = self.until(LEARN, lambda: self.document(name), f"{name} did not come")
        return found

    def forget(self, name):
        del self.servers[name]

    def document(self, name):
        status, body = self.get(f"/{name}/openapi.json")
        assert status in (200, 404, 503), f"{name}: {status} {body[:300]!r}"
        return json.loads(body) if status == 200 else None

    def get(self, path):
        try:
            with urllib.request.urlopen(self.url + path, timeout=30) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as refusal:
            return refusal.code, refusal.read()
        except OSError:
            return 0, b""

    def until(self, seconds, look, problem):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := look():
                return found
            time.sleep(0.02)
        log = (self.folder / "log").read_text(errors="replace")[-3000:]
        raise AssertionError(f"{problem}:\n{log}")


def offered(bridge, document, tools):
    """Open WebUI's functions by the tools' names; asserts that each tool is there and usable."""
    specs = {spec["name"]: spec for spec in converter.specs(document)}
    operations = [methods["post"]["operationId"] for methods in document["paths"].values()]
    assert len(set(operations)) == len(operations) == len(specs), "operation ids are not unique"
    names = list(dict.fromkeys(tool["name"] for tool in tools if tool["name"]))
    assert len(names) == len(specs), f"{len(names)} tools, {len(specs)} functions"
    for spec in specs.values():
        assert not (faults := converter.faults(spec)), f"{spec['name']}: {faults[:5]}"
    return dict(zip(names, (specs[name] for name in operations), strict=True))


def keeps(schema, parameters):
    """Names, plain types and needs of a schema whose root says its properties are as they were."""
    if not isinstance(schema, dict) or schema.get("type", "object") != "object":
        return
    # Nothing satisfies it: the bridge says so in a warning, and accepts anything.
    if schema.get("not") in (True, {}):
        return
    wanted = schema.get("properties")
    for name, inner in (wanted.items() if isinstance(wanted, dict) else ()):
        if not isinstance(inner, dict):
            continue
        # Only an argument that no value satisfies may be left out, and these say so by a keyword.
        impossible = {"not", "allOf", "anyOf", "oneOf", "$ref"} & set(inner)
        assert impossible or name in parameters["properties"], f"the argument {name!r} is lost"
        if set(inner) <= {"type", "description", "title", "properties", "required", "items", "default"} and (
            inner.get("type") in PLAIN
        ):
            now = parameters["properties"][name].get("type")
            assert now == inner["type"], f"the argument {name!r} was {inner['type']} and is {now}"
    required = schema.get("required")
    for name in required if isinstance(required, list) else ():
        left_out = isinstance(wanted, dict) and name in wanted and name not in parameters["properties"]
        if isinstance(name, str) and not left_out:
            assert name in parameters.get("required", []), f"{name!r} is no longer required"


def handmade(bridge):
    """Every animal of the zoo: there, kept, and called with its arguments."""
    for server, animals in ZOO.items():
        animals = [*animals, GOOD]
        document = bridge.serve(server, [listed for listed, _ in animals])
        functions = offered(bridge, document, [listed for listed, _ in animals])
        for listed, arguments in animals:
            name, spec = listed["name"], functions[listed["name"]]
            with explained(f"{server}/{name}"):
                if name not in CUT:
                    keeps(listed["inputSchema"], spec["parameters"])
                answer = converter.call(f"{bridge.url}/{server}", document, spec["name"], arguments, CHAT)
                assert answer == {"tool": name, "arguments": arguments}, f"called: {json.dumps(answer)[:300]}"
        print(f"{server}: {len(animals)} tools, every one offered and called")


@contextlib.contextmanager
def explained(what):
    try:
        yield
    except AssertionError as fault:
        raise AssertionError(f"{what}: {fault}") from None


WORDS = ["a", "b", "type", "$ref", "properties", "items", "model_config", "a b", "日本語", ""]
JUNK = [None, True, False, 0, -3, 1.5, "", "x", [], [None], {}, {"$ref": "#"}]
KINDS = [*PLAIN, "null", "any", ["string", "null"], ["object", "array"], []]
REFERENCES = ["#", "#/$defs/A", "#/$defs/B", "#/definitions/A", "#/properties/a", "#a", "x.json", "https://example.com/x",
              "#/components/schemas/File", "", "%"]  # fmt: skip
# What a keyword holds: one schema, several, named ones, or something of a list.
ONE = ["items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames"]
SEVERAL = ["anyOf", "oneOf", "allOf", "prefixItems", "items"]
NAMED = ["properties", "properties", "properties", "$defs", "definitions", "patternProperties", "dependentSchemas",
         "dependencies"]  # fmt: skip
OTHER = {"type": KINDS, "$ref": REFERENCES, "pattern": ["^a", "(", "(?=x)"], "$id": WORDS, "$anchor": WORDS} | dict.fromkeys(
    ["enum", "const", "default", "minimum", "description", "title", "format", "required", "maxItems", "nullable", "x-other"],
    JUNK,
)


@st.composite
def schema(draw, depth=4):
    """What a server's author may write, and what he should not have."""

    def one_of(choices):
        return draw(st.sampled_from(choices))

    def names():
        return draw(st.lists(st.sampled_from(WORDS), max_size=3, unique=True))

    if depth == 0 or draw(st.integers(0, 9)) == 0:
        return one_of([True, False, {}, {"type": "string"}, {"type": "integer"}, {"$ref": one_of(REFERENCES)}, *JUNK[:4]])
    made = {"type": one_of(KINDS)} if draw(st.booleans()) else {}
    for _ in range(draw(st.integers(0, 3))):
        kind = draw(st.integers(0, 4))
        if kind == 0:
            made[one_of(ONE)] = draw(schema(depth=depth - 1))
        elif kind == 1:
            made[one_of(SEVERAL)] = [draw(schema(depth=depth - 1)) for _ in range(draw(st.integers(0, 3)))]
        elif kind == 2:
            made[one_of(NAMED)] = {name: draw(schema(depth=depth - 1)) for name in names()}
        elif kind == 3:
            made["required"] = names()
        else:
            key = one_of(sorted(OTHER))
            made[key] = one_of(OTHER[key])
    return made


@st.composite
def root(draw):
    """Mostly an object with arguments, as servers send it; sometimes anything."""
    if draw(st.integers(0, 4)) == 0:
        return draw(schema())
    names = draw(st.lists(st.sampled_from(WORDS), max_size=4, unique=True))
    made = {"type": "object", "properties": {name: draw(schema(depth=3)) for name in names}}
    made["required"] = draw(st.lists(st.sampled_from(WORDS), max_size=2))
    made["$defs"] = {name: draw(schema(depth=2)) for name in ("A", "B")}
    return made


def random(bridge, examples):
    """Random tools beside a good one: none is lost, the good one is as it was alone, calls get an answer."""
    alone = offered(bridge, bridge.serve("alone", [GOOD[0]]), [GOOD[0]])[GOOD[0]["name"]]
    names = st.text(max_size=8).filter(lambda name: name.strip() and not any("\ud800" <= c <= "\udfff" for c in name))
    tools = st.lists(st.tuples(names, root()), min_size=1, max_size=12, unique_by=lambda pair: pair[0])
    numbers = iter(range(10**9))
    total = 0

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(tools)
    def holds(pairs):
        nonlocal total
        listed = [{"name": name, "inputSchema": schema} for name, schema in pairs if name != GOOD[0]["name"]]
        server = f"random{next(numbers)}"
        document = bridge.serve(server, [*listed, GOOD[0]])
        functions = offered(bridge, document, [*listed, GOOD[0]])
        assert functions[GOOD[0]["name"]] == alone, "the good neighbour changed"
        for one in listed:
            spec = functions[one["name"]]
            with explained(json.dumps(one)[:400]):
                keeps(one["inputSchema"], spec["parameters"])
                answer = converter.call(f"{bridge.url}/{server}", document, spec["name"], {}, CHAT)
                said = json.dumps(answer)
                assert answer.get("tool") == one["name"] or "HTTP error 422" in said, f"called: {said[:300]}"
        answer = converter.call(f"{bridge.url}/{server}", document, GOOD[0]["name"], GOOD[1], CHAT)
        assert answer == {"tool": GOOD[0]["name"], "arguments": GOOD[1]}, answer
        bridge.forget(server)
        total += len(listed)

    holds()
    print(f"random: {total} tools, every one offered, and answered when called")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", required=True, type=Path)
    parser.add_argument("--examples", type=int, default=40, help="random servers")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="schema-zoo-") as folder:
        bridge = Bridge(chosen.binary.resolve(), Path(folder))
        try:
            handmade(bridge)
            random(bridge, chosen.examples)
        finally:
            bridge.end()


if __name__ == "__main__":
    main()
