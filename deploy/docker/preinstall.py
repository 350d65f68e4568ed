"""Installs the servers of a file into the image: `preinstall.py FILE`, while it is built.

They are installed into /opt/mcpo-tools with their lock file. Secrets do not exist yet, and package managers
do not need them: references that are not set get placeholder values.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

TARGET = Path("/opt/mcpo-tools")
LOCK = "mcp-servers.lock.json"
# The bridge's syntax; `$${` is no reference, and a reference with a default needs no value.
VARIABLE = re.compile(r"(?<!\$)\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
SECRET_FILE = re.compile(r"(?<!\$)\$\{file:[^}]*\}")


def main(servers, target=TARGET):
    target.mkdir(parents=True, exist_ok=True)
    text = servers.read_text(encoding="utf-8")
    if not text.strip():
        return 0  # no servers
    locked = servers.with_name(servers.name + ".lock")
    if locked.exists():
        (target / LOCK).write_bytes(locked.read_bytes())
    readable = servers.with_name("readable.json")
    readable.write_text(SECRET_FILE.sub("a-secret", text), encoding="utf-8")
    command = ["mcpo-bridge", "install", "--config", readable, "--tools-dir", target, "--lock-file", target / LOCK]
    return subprocess.run(command, env=environment(text), check=False).returncode


def environment(text):
    """The bridge's environment: every variable that the file needs, and the package index of pip.conf."""
    unset = {name: f"the-{name}-of-later" for name in VARIABLE.findall(text)}
    # With the loopback address, the settings need no key.
    own = {"MCPO_PREINSTALLED_DIR": "", "MCPO_HOST": "127.0.0.1"}
    return {**unset, **indexes(), **os.environ, **own}


def indexes():
    """The package indexes of pip.conf, as variables: uv does not read that file."""
    found = {}
    for option, variable in (("index-url", "UV_DEFAULT_INDEX"), ("extra-index-url", "UV_INDEX")):
        asked = subprocess.run(
            ["pip", "config", "get", f"global.{option}"], capture_output=True, text=True, check=False
        )
        if asked.returncode == 0 and asked.stdout.strip():
            found[variable] = " ".join(asked.stdout.split())
    return found


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
