"""Other programs that put stdio servers behind HTTP, with the same child.

Pinned, installed under .tools/, and told to log no calls, since that is work nobody asked for.
"""

import json
import shlex

from bench.contender import TOOLS, Contender
from bench.contenders.bridge import document


class Mcpo(Contender):
    """As its contract was measured: tests/mcpo/requirements.txt."""

    name = "mcpo"
    version = "mcpo 0.0.20 of PyPI, with its dependencies of 2026-03-05"
    installs = [["scripts/ensure-venv", "mcpo", "tests/mcpo/requirements.txt"]]

    def __init__(self, servers):
        self.servers = servers

    def command(self):
        config = self.folder / "config.json"
        config.write_text(json.dumps({"mcpServers": self.servers}))
        told = ["--host", "127.0.0.1", "--port", str(self.port), "--log-level", "ERROR"]
        return [TOOLS / "mcpo/bin/mcpo", *told, "--config", config]

    def serves(self):
        return all(document(self.port, f"/{server}/openapi.json") for server in self.servers)


class Supergateway(Contender):
    """Starts a child for each session or, stateless, for each request."""

    name = "supergateway"
    version = "supergateway 4.0.0 of npm"
    installs = [
        ["scripts/ensure-npm", "node", "node@24.21.0"],
        ["scripts/ensure-npm", "supergateway", "supergateway@4.0.0"],
    ]

    def __init__(self, command, stateful):
        self._child, self._stateful = command, stateful

    def command(self):
        told = ["--outputTransport", "streamableHttp", "--logLevel", "none", "--port", str(self.port)]
        told += ["--stateful"] if self._stateful else []
        return [TOOLS / "supergateway/node_modules/.bin/supergateway", "--stdio", shlex.join(self._child), *told]


class McpProxy(Contender):
    """One child for all sessions."""

    name = "mcp-proxy"
    version = "mcp-proxy 0.13.0 of PyPI"
    installs = [["scripts/ensure-venv", "mcp-proxy", "bench/requirements.txt"]]

    def __init__(self, command):
        self._child = command

    def command(self):
        told = ["--port", str(self.port), "--log-level", "ERROR"]
        return [TOOLS / "mcp-proxy/bin/mcp-proxy", *told, "--", *self._child]
