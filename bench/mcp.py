"""The part of an MCP client that a load needs: a session, and the body of its calls."""

import http.client
import json

from bench.contender import Fault, Target

LEGACY, MODERN = "2025-06-18", "2026-07-28"
CLIENT = {"name": "bench", "version": "1"}
ACCEPT = {"Accept": "application/json, text/event-stream"}
HELLO = {"protocolVersion": LEGACY, "capabilities": {}, "clientInfo": CLIENT}


def message(method, params=None, request_id=None):
    about = {"jsonrpc": "2.0", "method": method}
    if request_id is not None:
        about["id"] = request_id
    return json.dumps(about if params is None else about | {"params": params})


def call(tool, arguments, **more):
    # An id as text: a number has no leading zeros.
    return message("tools/call", {"name": tool, "arguments": arguments, **more}, "call {n}")


def without_session(port, path, tool, arguments):
    return Target(port, path, call(tool, arguments), ACCEPT)


def with_session(port, path, tool, arguments):
    status, headers, body = post(port, path, message("initialize", HELLO, 1), ACCEPT)
    session = headers.get("mcp-session-id")
    if status != 200 or not session:
        raise Fault(f"{path}: initialize was answered {status} without a session: {body[:300]!r}")
    known = ACCEPT | {"Mcp-Session-Id": session, "MCP-Protocol-Version": LEGACY}
    status, _, body = post(port, path, message("notifications/initialized"), known)
    if status != 202:
        raise Fault(f"{path}: notifications/initialized was answered {status}: {body[:300]!r}")
    return Target(port, path, call(tool, arguments), known)


def modern(port, path, tool, arguments):
    """As 2026-07-28 has it: every request says who asks, and in which revision."""
    about = {"protocolVersion": MODERN, "clientCapabilities": {}, "clientInfo": CLIENT}
    meta = {f"io.modelcontextprotocol/{key}": value for key, value in about.items()}
    headers = ACCEPT | {"MCP-Protocol-Version": MODERN, "Mcp-Method": "tools/call", "Mcp-Name": tool}
    return Target(port, path, call(tool, arguments, _meta=meta), headers)


def post(port, path, body, headers=None, patience=60):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=patience)
    try:
        connection.request("POST", path, body.encode(), {"Content-Type": "application/json"} | (headers or {}))
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()
