"""Keeps what a process must have for itself."""

import os
import random
import secrets
import tempfile

KEY = secrets.token_hex(16)
FOLDER = os.getcwd()
generator = random.Random()
file = tempfile.TemporaryFile()


def grown():
    """The size of the file, one byte further."""
    file.write(b"x")
    file.flush()
    return os.fstat(file.fileno()).st_size


try:
    from mcp.server.mcpserver import MCPServer

    server = MCPServer("canary")
except ImportError:
    server = None
