"""The official suite as a program: what it scores, one run of it, and its verdicts."""

import json
import subprocess
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from serving import Fault

LEGACY, MODERN = "2025-11-25", "2026-07-28"
PACKAGE = Path(__file__).resolve().parents[2] / ".tools/conformance/node_modules/@modelcontextprotocol/conformance"
SUITE_LIMIT = 300  # seconds for a whole run; a good one takes three
GREETING_LIMIT = 60  # seconds for a server's first call


@dataclass
class Outcome:
    """`failed` maps a scored scenario to its first failing check."""

    scored: int
    failed: dict[str, str]
    warnings: int


def scored_scenarios(revision):
    """The names under `server:` of the suite's own list for the revision."""
    lines = (PACKAGE / f"requirements/{revision}.yaml").read_text().splitlines()
    names = []
    for line in lines[lines.index("server:") + 1 :]:
        if not line.startswith("  - "):
            break
        names.append(line.removeprefix("  - ").strip())
    return names


def run_suite(url, revision, folder):
    """Runs the suite against a URL; everything that it says is kept in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["node", PACKAGE / "dist/index.js", "server", "--url", url, "--requirements", revision, "-o", folder]
    try:
        with (folder / "suite.log").open("wb") as log:
            subprocess.run(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, timeout=SUITE_LIMIT)
    except subprocess.TimeoutExpired:
        raise Fault(f"the suite took more than {SUITE_LIMIT} s, see {folder}/suite.log") from None
    scenarios = scored_scenarios(revision)
    verdicts = {scenario: checks_of(folder, scenario) for scenario in scenarios}
    failed = {name: first for name, checks in verdicts.items() if (first := first_failure(checks))}
    warnings = sum(check["status"] == "WARNING" for checks in verdicts.values() for check in checks)
    return Outcome(len(scenarios), failed, warnings)


def checks_of(folder, scenario):
    """The checks of the scenario's results folder, which has the time as its name's end."""
    found = sorted(folder.glob(f"server-{scenario}-2[0-9][0-9][0-9]-*/checks.json"))
    return json.loads(found[-1].read_text()) if found else []


def first_failure(checks):
    """Judged as the suite does: a warning is no failure. A scenario without a check has not run."""
    for check in checks:
        if check["status"] == "FAILURE":
            return f"{check['name']}: {check.get('errorMessage') or check['description']}"
    return None if checks else "it left no result"


def greet(url, revision):
    """One call in the revision's way, so that the server's child is up."""
    call = {"name": "test_simple_text", "arguments": {}}
    headers = {"MCP-Protocol-Version": revision}
    if revision == MODERN:
        about = {"protocolVersion": MODERN, "clientCapabilities": {}}
        call["_meta"] = {f"io.modelcontextprotocol/{key}": value for key, value in about.items()}
        post(url, headers | {"Mcp-Method": "tools/call", "Mcp-Name": call["name"]}, "tools/call", call)
        return
    hello = {"protocolVersion": revision, "capabilities": {}, "clientInfo": {"name": "greeter", "version": "0"}}
    session = post(url, {}, "initialize", hello).get("Mcp-Session-Id")
    if session:
        headers["Mcp-Session-Id"] = session
    post(url, headers, "notifications/initialized", {}, request_id=None)
    post(url, headers, "tools/call", call)


def post(url, headers, method, params, request_id=1):
    """Posts one message and reads its answer to the end; gives the answer's headers."""
    message = {"jsonrpc": "2.0", "method": method, "params": params}
    if request_id is not None:
        message["id"] = request_id
    accepted = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    request = urllib.request.Request(url, json.dumps(message).encode(), accepted | headers)
    try:
        with urllib.request.urlopen(request, timeout=GREETING_LIMIT) as answer:
            answer.read()
            return answer.headers
    except urllib.error.HTTPError as refusal:
        said = refusal.read(500).decode(errors="replace")
        raise Fault(f"{method} was answered with {refusal.code} {said}") from None
    except OSError as fault:
        raise Fault(f"{method} was not answered: {fault}") from None
