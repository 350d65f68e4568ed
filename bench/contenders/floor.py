"""What nothing in front of a child can beat: no work at all, and nginx for downloads."""

import shutil
import subprocess

from bench.contender import ROOT, Contender, Missing, Target, program


class Noop(Contender):
    name = "no-op"
    version = "axum of Cargo.lock, gives back the body"

    def command(self):
        return [program("noop"), str(self.port)]

    def target(self, body):
        return Target(self.port, "/", body)


class Nginx(Contender):
    """Serves one folder as it is delivered: sendfile, one worker for each core."""

    name = "nginx"

    def __init__(self, served):
        self.served = served

    def install(self):
        found = subprocess.run([ROOT / "scripts/ensure-nginx"], capture_output=True, text=True)
        if found.returncode != 0 or not shutil.which(found.stdout.strip()):
            raise Missing(found.stderr.strip() or "nginx cannot be installed")
        self.program = found.stdout.strip()
        self.version = subprocess.run([self.program, "-v"], capture_output=True, text=True).stderr.strip()

    def command(self):
        config = self.folder / "nginx.conf"
        paths = "\n".join(
            f"{kind}_temp_path {self.folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        config.write_text(
            f"daemon off; worker_processes auto; pid {self.folder}/pid; error_log stderr;\n"
            "events { worker_connections 512; }\n"
            f"http {{ sendfile on; tcp_nopush on; access_log off; {paths}\n"
            f"server {{ listen 127.0.0.1:{self.port}; location / {{ root {self.served}; }} }} }}\n"
        )
        user = ["-g", "user root;"] if _is_root() else []
        return [self.program, "-p", str(self.folder), "-e", "stderr", "-c", str(config), *user]


def _is_root():
    import os

    return os.geteuid() == 0
