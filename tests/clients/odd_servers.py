"""Starts a bridge in front of odd servers and one good one, and has real clients list and call everything
good at its /mcp: odd_servers.py BRIDGE PYTHON NODE_MODULES [FOLDER].

FOLDER holds more servers (`oddtool.py KIND SCHEMA`, `oddlists.py KIND`, `quirk.py MODE`); without it those
of this repository are odd enough.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "support"))
from bridge import Bridge, Failed, fixture

START = 300  # seconds until every server is learnt

SCHEMA = {"type": "object", "properties": {}}
# Each is one tool that a client might refuse.
TOOLS = {
    "missing": {"inputSchema": ...},
    "null": {"inputSchema": None},
    "true": {"inputSchema": True},
    "text": {"inputSchema": "{}"},
    "upper": {"inputSchema": {"type": "OBJECT", "properties": {"a": {"type": "STRING"}}}},
    "list": {"inputSchema": {"type": ["object", "null"]}},
    "oneof": {"inputSchema": {"oneOf": [{"required": ["a"]}, {"required": ["b"]}]}},
    "notype": {"inputSchema": {"properties": {"a": {"type": "string"}}}},
    "propsnull": {"inputSchema": {"type": "object", "properties": None, "required": None}},
    "propstrue": {"inputSchema": {"type": "object", "properties": {"a": True, "b": None}, "required": ["a", 1]}},
    "nulls": {"description": None, "title": None, "annotations": None, "_meta": None, "outputSchema": None, "icons": None},
    "types": {"description": 5, "title": {}, "annotations": {"readOnlyHint": "yes"}, "_meta": [], "execution": "x"},
    "icons": {"icons": [{"src": None}, {"src": "data:,", "sizes": "any", "theme": "blue"}]},
    "task": {"execution": {"taskSupport": "perhaps"}},
    "surrogate": {"description": "half \ud800 pair"},
    "deep": {"inputSchema": json.loads('{"not":' * 150 + "{}" + "}" * 150)},
}
# Each is one outputSchema that a client might not compile.
OUTPUTS = {
    "dangling": {"type": "object", "properties": {"a": {"$ref": "#/$defs/Nope"}}},
    "remote": {"type": "object", "properties": {"a": {"$ref": "https://example.com/a.json"}}},
    "array": {"type": "array", "items": {}},
    "badtype": {"type": "object", "properties": {"a": {"type": "str"}}},
    "enum": {"type": "object", "properties": {"a": {"enum": []}}},
    "draft4": {"type": "object", "properties": {"a": {"minimum": 0, "exclusiveMinimum": True}}},
    "nullable": {"type": "object", "properties": {"a": {"nullable": True}}},
    "pattern": {"type": "object", "properties": {"a": {"pattern": "^[\\w-.]+$"}}},
    "patterns": {"type": "object", "patternProperties": {"(?i)x": {}}},
    "id": {"type": "object", "id": "x"},
    "nested": {"type": "object", "properties": {"a": {"$id": "https://example.com/same", "type": "string"}}},
}
PROMPTS = [
    {"name": "good", "arguments": [{"name": "a", "required": False}]},
    {"name": "nulls", "title": None, "description": None, "arguments": None, "icons": None},
    {"description": "no name"},
    {"name": "args", "arguments": [{"name": "a", "description": None, "required": None}, {"x": 1}, None]},
    None,
]
RESOURCES = [
    {"uri": "x://good", "name": "good", "size": 5, "mimeType": "text/plain"},
    {"uri": "x://nulls", "name": "r", "mimeType": None, "description": None, "size": None, "annotations": None},
    {"uri": "x://noname"},
    {"name": "no uri"},
    {"uri": "x://size", "name": "r", "size": "5 KB"},
    {"uri": "x://notes", "name": "r", "annotations": {"audience": ["bot"], "priority": 7, "lastModified": "yesterday"}},
    5,
]
TEMPLATES = [{"uriTemplate": "x://{a}", "name": None, "mimeType": 5}, {"name": "none"}]


def script(**said):
    return fixture("script_server.py", json.dumps(said))


def own_servers():
    tools = []
    for name, members in TOOLS.items():
        tool = {"name": name, "description": name, "inputSchema": SCHEMA, **members}
        tools.append({key: value for key, value in tool.items() if value is not ...})
    tools += [{"name": name, "inputSchema": SCHEMA, "outputSchema": schema} for name, schema in OUTPUTS.items()]
    results = {
        "tools/list": {"tools": tools + [{"name": 5}, {"inputSchema": SCHEMA}, None, "x"]},
        "prompts/list": {"prompts": PROMPTS},
        "resources/list": {"resources": RESOURCES},
        "resources/templates/list": {"resourceTemplates": TEMPLATES},
    }
    able = {"tools": {}, "prompts": {}, "resources": {}}
    hello = {"protocolVersion": "2025-06-18", "serverInfo": {"name": None, "version": 2}, "instructions": None,
             "capabilities": {"tools": True, "extensions": {"io.modelcontextprotocol/ui": None}, "logging": []}}
    return {
        "good": script(),
        "odd": script(results=results, capabilities=able),
        "hello": script(results={"initialize": hello}),
        "lists": script(results={"tools/list": {"tools": None}, "prompts/list": {"prompts": {}}}, capabilities=able),
        "silent": script(results={"tools/list": []}),
    }


def more_servers(folder):
    run = lambda *args: {"command": sys.executable, "args": [str(folder / args[0]), *args[1:]]}
    schemas = ["null", "true", "{}", '{"type":"OBJECT"}', '{"type":["object","null"]}', '{"oneOf":[{"type":"object"}]}',
               '{"type":"object","properties":null}', '{"type":"object","required":null}', '{"properties":{}}', "[]", "5"]
    kinds = ["missing_schema", "desc_null", "annot", "out_null", "out_dangling", "name_num"]
    lists = ["nulls", "noname", "argnulls", "rnulls", "rnoname", "rnouri", "rbadsize"]
    modes = ["schemas", "names", "infoodd", "instr", "caps_true", "nocaps", "numcursor", "samecursor", "bom", "banner", "partial"]
    servers = {f"schema{number}": run("oddtool.py", "schema", schema) for number, schema in enumerate(schemas)}
    servers |= {f"tool_{kind}": run("oddtool.py", kind, "{}") for kind in kinds}
    servers |= {f"list_{kind}": run("oddlists.py", kind) for kind in lists}
    return servers | {f"quirk_{mode}": run("quirk.py", mode) for mode in modes}


def health(url):
    with urllib.request.urlopen(f"{url}/health", timeout=10) as answer:
        return json.load(answer)


def settled(url):
    servers = health(url)["servers"]
    return all(server["status"] != "starting" for server in servers.values())


def main(binary, python, modules, more=None):
    servers = own_servers() | (more_servers(Path(more)) if more else {})
    with tempfile.TemporaryDirectory() as folder, Bridge(binary, folder, servers) as bridge:
        url = f"http://127.0.0.1:{bridge.port}"
        until = time.monotonic() + START
        while not settled(url):
            if time.monotonic() > until:
                raise Failed("a server was not learnt")
            time.sleep(0.3)
        print(f"{len(servers)} servers, {len(health(url)['warnings'])} warnings")
        environment = os.environ | {"NODE_PATH": modules}
        failed = 0
        for words in (
            ["node", str(HERE / "odd_typescript.mjs"), f"{url}/mcp", modules],
            [python, str(HERE / "odd_python.py"), f"{url}/mcp", "legacy"],
            [python, str(HERE / "odd_python.py"), f"{url}/mcp", "modern"],
        ):
            print(" ".join(Path(word).name if "/" in word and "://" not in word else word for word in words[:2] + words[3:4]), flush=True)
            failed += subprocess.run(words, env=environment, check=False).returncode != 0
        return failed


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except Failed as failed:
        sys.exit(f"odd_servers: {failed}")
