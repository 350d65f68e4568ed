"""The ways to reach a child, each a `Contender`."""

from bench.contenders.bridge import Bridge
from bench.contenders.floor import Nginx, Noop
from bench.contenders.peers import McpProxy, Mcpo, Supergateway
from bench.contenders.uvx import Uvx

__all__ = ["Bridge", "McpProxy", "Mcpo", "Nginx", "Noop", "Supergateway", "Uvx"]
