"""Preparation before the services start: `init` in docker-compose.yml runs it once, as root.

It creates missing secrets, writes Open WebUI's settings for the bridge, and makes the bridge's user the
owner of the volumes. A second run changes only what differs: `up -d` is safe at any time.
"""

import json
import os
import secrets
import shlex
import shutil
import sys
from pathlib import Path
from urllib.parse import quote

CONFIG = Path("/app/config/mcp-servers.json")
HOST_CONFIG = Path("/run/host-config/mcp-servers.json")  # production: copied, not bind-mounted
GIVEN = Path("/run/given")  # production: the host's folder ./secrets
BRIDGE = Path("/run/mcpo")  # the bridge's secrets
WEBUI = Path("/run/openwebui")  # Open WebUI's secrets, which the bridge's servers must not read
VOLUMES = [Path("/tmp/mcpo-jobs"), Path("/tmp/mcpo-tools"), Path("/app/logs")]


def main():
    owner = (int(os.environ["MCPO_UID"]), int(os.environ["MCPO_GID"]))
    servers = server_names()
    key = secret("MCPO_API_KEY", BRIDGE / "api-key", lambda: f"openwebui:{secrets.token_urlsafe(32)}", owner)
    jwt = secret("MCPO_JWT_SECRET", BRIDGE / "jwt-secret", lambda: secrets.token_urlsafe(48), owner)
    webui = secret("WEBUI_SECRET_KEY", WEBUI / "webui-secret-key", lambda: secrets.token_urlsafe(48))
    variables = {
        "WEBUI_SECRET_KEY": webui,
        "FORWARD_USER_INFO_HEADER_JWT_SECRET": jwt,
        "TOOL_SERVER_CONNECTIONS": json.dumps([connection(name, key) for name in servers]),
    }
    model_key = given("OPENAI_API_KEY")
    if model_key:
        variables["OPENAI_API_KEY"] = model_key
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in variables.items()]
    write(WEBUI / "env", "".join(lines))
    for volume in VOLUMES:
        give(volume, owner)
    print(f"init: ready; servers: {', '.join(servers) or 'none'}")


def server_names():
    """The enabled servers. The bridge itself validates the file and reports errors."""
    hint = "cp mcp-servers.json.example config/mcp-servers.json, edit it, and run this again"
    if HOST_CONFIG.parent.is_dir():
        if not HOST_CONFIG.is_file():
            sys.exit(f"init: config/mcp-servers.json is missing: {hint}")
        # Renamed into place, because a running bridge reads it every two seconds.
        new = CONFIG.with_suffix(".new")
        shutil.copyfile(HOST_CONFIG, new)
        new.chmod(0o644)
        new.replace(CONFIG)
    try:
        servers = json.loads(CONFIG.read_text(encoding="utf-8"))["mcpServers"]
        return [name for name, server in servers.items() if is_on(name, server)]
    except FileNotFoundError:
        sys.exit(f"init: config/mcp-servers.json is missing: {hint}")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        sys.exit(f"init: config/mcp-servers.json cannot be used: {error!r}; its format is in docs/configuration.md")


def is_on(name, server):
    comment = name.startswith(("//", "_comment"))
    return not comment and not server.get("disabled", False) and server.get("enabled", True)


def connection(server, keys):
    """The connection that an administrator would enter for this server, with access for all users."""
    first = keys.replace("\n", ",").split(",")[0].strip()
    return {
        "type": "openapi",
        "url": f"http://mcpo-bridge:8080/mcpo/{quote(server)}",
        "path": "openapi.json",
        "spec_type": "url",
        "spec": "",
        "auth_type": "bearer",
        "key": first.partition(":")[2] or first,
        "info": {"id": server.translate(str.maketrans(":|", "--")), "name": server, "description": ""},
        "config": {
            "enable": True,
            "function_name_filter_list": "",
            "access_grants": [{"principal_type": "user", "principal_id": "*", "permission": "read"}],
        },
    }


def given(variable):
    """A value from the environment, or from a file such as secrets/mcpo-api-key."""
    value = os.environ.get(variable, "").strip()
    if value:
        return value
    try:
        return (GIVEN / variable.lower().replace("_", "-")).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""


def secret(variable, file, make, owner=(0, 0)):
    kept = file.read_text(encoding="utf-8") if file.exists() else ""
    value = given(variable) or kept or make()
    write(file, value, owner)
    return value


def write(file, text, owner=(0, 0)):
    """Written atomically, and readable for its owner only."""
    new = file.with_name(f"{file.name}.new")
    new.unlink(missing_ok=True)
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400), "w", encoding="utf-8") as out:
        out.write(text)
    os.chown(new, *owner)
    new.replace(file)


def give(volume, owner):
    """Changes the owner: a new volume belongs to root if its driver does not copy the image's folder."""
    if not volume.is_mount():
        return
    found = volume.stat()
    if (found.st_uid, found.st_gid) == owner:
        return
    try:
        for folder, folders, files in os.walk(volume):
            for name in folders + files:
                os.chown(os.path.join(folder, name), *owner, follow_symlinks=False)
        os.chown(volume, *owner)  # last, so that an interrupted run starts again
    except OSError as error:
        sys.exit(f"init: {volume} must belong to user {owner[0]}, and its owner cannot be changed: {error}")


main()
