"""What an overlay renders to, and lookups in it."""

import importlib.util
import os
import re
import shlex
import subprocess
from importlib.machinery import SourceFileLoader
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = sorted(folder.name for folder in (KUBERNETES / "overlays").iterdir() if folder.is_dir())


def render(overlay):
    command = shlex.split(os.environ.get("KUSTOMIZE", "kustomize build"))
    done = subprocess.run([*command, KUBERNETES / "overlays" / overlay], capture_output=True, text=True, check=False)
    if done.returncode != 0 or done.stderr:
        raise SystemExit(f"check-kubernetes: {overlay} does not render cleanly:\n{done.stderr}")
    return list(yaml.safe_load_all(done.stdout))


def made_secrets(namespace):
    """What deploy/kubernetes/make-secrets would print."""
    loader = SourceFileLoader("make_secrets", str(KUBERNETES / "make-secrets"))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module.both(namespace)["items"]


def known_settings():
    """The variables in the table that a test of the bridge holds to its code."""
    table = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    return set(re.findall(r"^\| `(MCPO_[A-Z_]+)` \|", table, re.MULTILINE))


def of_kind(resources, kind):
    return [resource for resource in resources if resource["kind"] == kind]


def named(resources, kind, name):
    return next((one for one in of_kind(resources, kind) if one["metadata"]["name"] == name), None)


def pods(resources):
    """(Deployment's name, its pod template) of each."""
    return [(one["metadata"]["name"], one["spec"]["template"]) for one in of_kind(resources, "Deployment")]


def containers(pod):
    return pod["spec"].get("initContainers", []) + pod["spec"]["containers"]


def environment(resources, container):
    """Variables that are plain text, from ConfigMaps and from the container itself."""
    found = {}
    for source in container.get("envFrom", []):
        found |= named(resources, "ConfigMap", source["configMapRef"]["name"])["data"]
    return found | {one["name"]: one["value"] for one in container.get("env", []) if "value" in one}


def selects(selector, labels):
    return all(labels.get(key) == value for key, value in selector.items())
