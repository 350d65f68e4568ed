"""Installs the servers of a file into the image: `preinstall.py FILE`, while it is built.

They go to /opt/mcpo-tools with their lock file. Secrets are not there yet, and are none of the
package managers' business: what the file refers to and is not set stands for itself.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

TARGET = Path("/opt/mcpo-tools")
LOCK = "mcp-servers.lock.json"
# As the bridge reads them; `$${` is no reference, and one with a default needs nothing.
VARIABLE = re.compile(r"(?<!\$)\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
SECRET_FILE = re.compile(r"(?<!\$)\$\{file:[^}]*\}")


def main(servers, target=TARGET):
    target.mkdir(parents=True, exist_ok=True)
    text = servers.read_text(encoding="utf-8")
    if not text.strip():
        return 0  # none are wanted
    locked = servers.with_name(servers.name + ".lock")
    if locked.exists():
        (target / LOCK).write_bytes(locked.read_bytes())
    readable = servers.with_name("readable.json")
    readable.write_text(SECRET_FILE.sub("a-secret", text), encoding="utf-8")
    command = ["mcpo-bridge", "install", "--config", readable, "--tools-dir", target, "--lock-file", target / LOCK]
    return subprocess.run(command, env=environment(text), check=False).returncode


def environment(text):
    """What the bridge sees: every variable that the file needs, and the package index of pip.conf."""
    unset = {name: f"the-{name}-of-later" for name in VARIABLE.findall(text)}
    # Nobody listens: no key is needed for that either.
    own = {"MCPO_PREINSTALLED_DIR": "", "MCPO_HOST": "127.0.0.1"}
    return {**unset, **indexes(), **os.environ, **own}


def indexes():
    """uv does not read pip.conf, which says already where packages come from here."""
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
