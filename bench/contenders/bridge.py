"""The bridge, with whatever servers a measure asks for."""

import http.client
import json
import subprocess

from bench.contender import ROOT, Contender, Fault

TOOLS_DIR = ROOT / ".run/bench-tools"
PATIENCE = 300  # seconds until the catalogue knows every server


class Bridge(Contender):
    name = "bridge"
    ends_well = True

    def __init__(self, binary, servers, name="bridge", **settings):
        self.binary, self.servers, self.name = binary, servers, name
        self._settings = settings
        printed = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True)
        self.version = printed.stdout.strip()

    def command(self):
        return [self.binary, "serve", "--host", "127.0.0.1", "--port", str(self.port)]

    def environment(self):
        config = self.folder / "mcp-servers.json"
        config.write_text(json.dumps({"mcpServers": self.servers}))
        return {
            "MCPO_CONFIG_FILE": str(config),
            "MCPO_JOBS_DIR": str(self.folder / "jobs"),
            "MCPO_TOOLS_DIR": str(TOOLS_DIR),
            **self._settings,
        }

    def serves(self):
        """Once every server's document is there."""
        return all(document(self.port, f"/mcpo/{server}/openapi.json") for server in self.servers)

    def supports_fork(self):
        printed = subprocess.run([self.binary, "config-schema"], capture_output=True, text=True, check=True)
        return '"fork"' in printed.stdout

    def prepare(self, folder):
        """Installs its servers ahead, as the image's build does."""
        config = folder / "servers.json"
        config.write_text(json.dumps({"mcpServers": self.servers}))
        line = [self.binary, "install", "--no-lock", "--config", config, "--tools-dir", TOOLS_DIR]
        from bench.contender import plain_environment

        done = subprocess.run(line, env=plain_environment(), capture_output=True, text=True, timeout=PATIENCE)
        if done.returncode != 0:
            raise Fault(f"mcpo-bridge install: {done.stdout[-500:]} {done.stderr[-500:]}")


def document(port, path):
    """Whether there is a document with operations in it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        return answer.status == 200 and bool(json.loads(body).get("paths"))
    except (OSError, http.client.HTTPException, ValueError):
        return False
    finally:
        connection.close()
