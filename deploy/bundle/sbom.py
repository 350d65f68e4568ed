"""Lists of contents (SBOM, CycloneDX) of the program and of each image."""

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

# Lock file of the servers in the bridge's image.
LOCK = "/opt/mcpo-tools/mcp-servers.lock.json"
# Prints Debian's and Alpine's packages, those of the image's own Python, and Node; missing tools are skipped.
LOOK = r"""
. /etc/os-release && printf 'os\t%s\t%s\n' "$ID" "$VERSION_ID"
dpkg-query -W -f 'deb\t${Package}\t${Version}\t${Architecture}\n' 2>/dev/null
apk list --installed 2>/dev/null | sed -E 's/^(.+)-([^-]+-r[0-9]+) ([^ ]+) .*/apk\t\1\t\2\t\3/'
python3 -c '
import importlib.metadata
for found in importlib.metadata.distributions():
    print("pypi", found.metadata["Name"], found.version, sep="\t")
' 2>/dev/null
node=$(node --version 2>/dev/null) && printf 'generic\tnode\t%s\n' "${node#v}"
cat /opt/mcpo-tools/mcp-servers.lock.json 2>/dev/null | tr -d '\n' | sed 's/^/lock\t/'
exit 0
"""


@dataclass(frozen=True, order=True)
class Package:
    """The parts of a package URL."""

    kind: str
    namespace: str
    name: str
    version: str
    qualifiers: tuple = ()


def of_image(image):
    """All packages that the package managers in an image know."""
    command = ["docker", "run", "--rm", "--network", "none", "--entrypoint", "sh", image, "-c", LOOK]
    return packages(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def packages(seen):
    """The packages in the output of LOOK, sorted, without duplicates."""
    system, found = ("linux", ""), set()
    for line in seen.splitlines():
        kind, *rest = line.split("\t")
        if kind == "os":
            system = tuple(rest)
        elif kind in ("deb", "apk"):
            name, version, processor = rest
            distribution = "-".join(filter(None, system))
            found.add(Package(kind, system[0], name, version, (("arch", processor), ("distro", distribution))))
        elif kind == "pypi":
            found.add(python(*rest))
        elif kind == "generic":
            found.add(Package(kind, "", *rest))
        elif kind == "lock":
            found.update(of_lock(json.loads(rest[0])))
    return sorted(found)


def of_lock(lock):
    """The packages that `mcpo-bridge install` locked for the servers."""
    for server in lock["servers"].values():
        for line in server.get("requirements", []):
            # `name[extra]==1.0 ; marker --hash=…`; a package from a URL has no version.
            name, _, rest = line.partition("==")
            version = re.split(r"[\s;]", rest)[0]
            yield python(re.split(r"[\s\[@]", name)[0], version)
        for path, package in server.get("package_lock", {}).get("packages", {}).items():
            if "node_modules/" in path:
                scope, _, name = path.rpartition("node_modules/")[2].rpartition("/")
                yield Package("npm", scope, name, package.get("version", ""))


def python(name, version):
    return Package("pypi", "", re.sub(r"[-_.]+", "-", name).lower(), version)


def document(name, version, contents):
    """CycloneDX, checked against its schema."""
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator
    from packageurl import PackageURL

    bom = Bom()
    bom.metadata.component = whole = Component(name=name, version=version, type=ComponentType.CONTAINER, bom_ref=name)
    for one in contents:
        where = PackageURL(one.kind, one.namespace or None, one.name, one.version or None, dict(one.qualifiers))
        bom.components.add(
            Component(
                name=one.name,
                group=one.namespace if one.kind == "npm" else None,
                version=one.version or None,
                purl=where,
                bom_ref=where.to_string(),
                type=ComponentType.LIBRARY,
            )
        )
    bom.register_dependency(whole, bom.components)
    text = JsonV1Dot6(bom).output_as_string(indent=2)
    wrong = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if wrong:
        raise ValueError(f"the list of {name} is not CycloneDX: {wrong}")
    return text


def of_program(root, target):
    """Runs cargo-cyclonedx, which writes a file next to the Cargo.toml of each crate of the workspace."""
    name = "mcpo-bridge-sbom"
    crates = Path(root) / "crates"
    command = ["cargo", "cyclonedx", "--format", "json", "--spec-version", "1.5", "--no-build-deps"]
    subprocess.run([*command, "--target", target, "--override-filename", name], cwd=root, check=True)
    try:
        return (crates / "bridge" / f"{name}.json").read_text(encoding="utf-8")
    finally:
        for written in crates.glob(f"*/{name}.json"):
            written.unlink()
