"""The ways to reach the echo child, each a module with one `Contender`."""

from bench.contenders.bridge import Bridge
from bench.contenders.loopback import Loopback
from bench.contenders.stdio import Stdio

__all__ = ["Bridge", "Loopback", "Stdio"]
