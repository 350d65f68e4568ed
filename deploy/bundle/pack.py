"""Packs images, Compose files, documents, checksums and lists of contents: `scripts/bundle`."""

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import sbom

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
FOLDER = "mcpo-bridge"  # the same in every version, so that unpacking over the old one is an update
COMPOSE = ("docker-compose.yml", "docker-compose.prod.yml", "docker-compose.scale.yml")
TAKEN = (
    "docker-compose*.yml", ".env.example", "config/.gitkeep", "deploy/haproxy/*", "deploy/kubernetes/*",
    "deploy/nginx/*", "deploy/traefik/*", "deploy/volumes/*", "scripts/rolling-update", "docs/*", "README*.md",
    "CHANGELOG.md", "LICENSE-*",
)  # fmt: skip
GUIDES = ("INSTALL.md", "INSTALL.ja.md")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--version", default=version_of_the_program(), help="the image's tag and the archive's name")
    parser.add_argument("--no-build", action="store_true", help="use the existing image mcpo-bridge:VERSION")
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", help="output directory")
    wanted = parser.parse_args()
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", wanted.version):
        parser.error(f"{wanted.version} cannot be the tag of an image")
    name = f"mcpo-bridge-{wanted.version}-linux-{platform.machine()}"
    stage = wanted.dist / f".{name}"
    shutil.rmtree(stage, ignore_errors=True)
    folder = stage / FOLDER
    folder.mkdir(parents=True)
    try:
        compose = Compose(wanted.version)
        if not wanted.no_build:
            compose.build()
        images = compose.images()
        take_files(folder, compose.servers(), images)
        guides = {guide: guide_for(guide, wanted.version, name) for guide in GUIDES}
        for guide, text in guides.items():
            (folder / guide).write_text(text, encoding="utf-8")
            (wanted.dist / guide).write_text(text, encoding="utf-8")
        list_contents(folder / "sbom", images)
        say(f"saving {', '.join(images)}")
        save(images, folder / "images.tar.gz")
        write_checksums(folder)
        archive = wanted.dist / f"{name}.tar"
        with tarfile.open(archive, "w") as packed:
            packed.add(folder, FOLDER, filter=owned_by_nobody)
    finally:
        shutil.rmtree(stage)
    line = f"{digest(archive)}  {archive.name}\n"
    archive.with_name(f"{archive.name}.sha256").write_text(line, encoding="utf-8")
    say(f"{archive} ({archive.stat().st_size / 1e6:.0f} MB); how to use it: {wanted.dist / 'INSTALL.md'}")


def version_of_the_program():
    return tomllib.loads((ROOT / "Cargo.toml").read_text(encoding="utf-8"))["workspace"]["package"]["version"]


class Compose:
    """The project whose images are packed, with this machine's .env."""

    def __init__(self, version):
        self.version = version
        self.env = {**os.environ, "MCPO_IMAGE_TAG": version}
        self.env.pop("COMPOSE_FILE", None)

    def run(self, *arguments, files=COMPOSE[:1], capture=True):
        command = ["docker", "compose"]
        for file in files:
            command += ["--file", file]
        pipe = subprocess.PIPE if capture else None
        done = subprocess.run([*command, *arguments], cwd=ROOT, env=self.env, check=True, stdout=pipe, text=True)
        return done.stdout

    def build(self):
        revision = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
        arguments = ["--build-arg", f"VERSION={self.version}"]
        if revision.returncode == 0:
            arguments += ["--build-arg", f"REVISION={revision.stdout.strip()}"]
        self.run("build", *arguments, "mcpo-bridge", capture=False)

    def servers(self):
        """The server file whose servers are installed in the image."""
        config = json.loads(self.run("config", "--format", "json"))
        return ROOT / config["services"]["mcpo-bridge"]["build"]["args"]["SERVERS"]

    def images(self):
        """The images of all services: quick start, production and several bridges."""
        images = sorted(set(self.run("config", "--images", files=COMPOSE).split()))
        for image in images:
            here = subprocess.run(["docker", "image", "inspect", image], capture_output=True, check=False)
            if here.returncode != 0:
                say(f"pulling {image}")
                subprocess.run(["docker", "pull", "--quiet", image], check=True)
        return images


def take_files(folder, servers, images):
    """Copies tracked files only: no configuration and no secrets of this machine."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", *TAKEN], cwd=ROOT, check=True, capture_output=True, text=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)
        shutil.copymode(ROOT / name, target)
    example = ROOT / "mcp-servers.json.example"
    if servers.stat().st_size:
        example = servers
    shutil.copyfile(example, folder / "mcp-servers.json.example")
    for file in COMPOSE:
        change(folder / file, lambda text: with_tags(text, images))
    change(folder / COMPOSE[0], without_build)
    change(folder / ".env.example", without_internet)


def change(file, how):
    file.write_text(how(file.read_text(encoding="utf-8")), encoding="utf-8")


def replace(pattern, by, text):
    """Replaces exactly one match; an error means that a file changed and this script did not."""
    changed, count = re.subn(pattern, by, text, flags=re.M)
    if count != 1:
        raise ValueError(f"{pattern!r} matches {count} times instead of once")
    return changed


def without_build(text):
    """Loaded images are neither built nor pulled."""
    text = replace(r"^  build:\n(    .*\n)+", "  pull_policy: never\n", text)
    return replace(r"\n^# Only for builds .*\nsecrets:\n(  .*\n)+", "", text)


def with_tags(text, images):
    """Sets the tags of the packed images, so that a newer bundle runs the newer images."""
    for image in images:
        name, _, tag = image.rpartition(":")
        text = re.sub(rf"(?<=image: {re.escape(name)}:)\$\{{(\w+):-[^}}]*\}}", rf"${{\1:-{tag}}}", text)
    return text


def without_internet(text):
    for line in ("MCPO_INSTALL=false", "OFFLINE_MODE=true", "HF_HUB_OFFLINE=1"):
        text = replace(f"^#{re.escape(line)}$", line, text)
    return text


def guide_for(name, version, archive):
    text = (HERE / name).read_text(encoding="utf-8")
    return text.replace("{VERSION}", version).replace("{ARCHIVE}", archive)


def list_contents(folder, images):
    folder.mkdir()
    say("listing the contents of the program and the images")
    target = f"{platform.machine()}-unknown-linux-gnu"
    (folder / "program.cdx.json").write_text(sbom.of_program(ROOT, target), encoding="utf-8")
    for image in images:
        repository, _, version = image.rpartition(":")
        text = sbom.document(repository, version, sbom.of_image(image))
        (folder / f"image-{repository.rpartition('/')[2]}.cdx.json").write_text(text, encoding="utf-8")


def save(images, file):
    """Saves all images in one archive, which contains shared layers once."""
    gzip = shutil.which("pigz") or "gzip"
    with file.open("wb") as out:
        saving = subprocess.Popen(["docker", "save", *images], stdout=subprocess.PIPE)
        packing = subprocess.run([gzip, "-1"], stdin=saving.stdout, stdout=out, check=False)
        saving.stdout.close()
        if saving.wait() or packing.returncode:
            sys.exit("bundle: the images could not be saved")


def write_checksums(folder):
    files = sorted(file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    lines = [f"{digest(folder / file)}  {file}\n" for file in files]
    (folder / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")


def digest(file):
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def owned_by_nobody(entry):
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def say(text):
    print(f"bundle: {text}", flush=True)


if __name__ == "__main__":
    main()
