"""The ways to reach the echo child, each a `Contender`."""

from bench.contenders.bridge import Bridge, McpLegacy, McpModern
from bench.contenders.loopback import Loopback
from bench.contenders.peers import McpProxy, Supergateway, SupergatewayModern
from bench.contenders.stdio import Stdio

__all__ = [
    "Bridge",
    "Loopback",
    "McpLegacy",
    "McpModern",
    "McpProxy",
    "Stdio",
    "Supergateway",
    "SupergatewayModern",
]
