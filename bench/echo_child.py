"""The child behind every contender: the test server, one tool of it."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, str(ROOT / "tests" / "fixtures" / "echo_server.py")]
TOOL = "echo"


def payload(number: int, size: int) -> str:
    """A text of `size` characters that no other call has, and that cannot be taken for JSON."""
    head = f"call {number:08} "
    return head + "x" * max(0, size - len(head))
