"""Renders each overlay, and holds it to the strict schemas of Kubernetes and to our own rules.

`scripts/check-kubernetes` installs what this needs and starts it.
"""

import sys

import kubernetes_validate
from manifests import OVERLAYS, made_secrets, of_kind, render
from policy import faults, secrets_hold_what_is_asked

#: The oldest that has all we use and a schema at hand, and the newest.
VERSIONS = ("1.33", "1.34", "1.35", "1.36", "1.37")


def schema_faults(resources):
    for version in VERSIONS:
        for one in resources:
            try:
                kubernetes_validate.validate(one, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                place = ".".join(map(str, error.path))
                yield f"{one['kind']} {one['metadata']['name']}, Kubernetes {version}: {place}: {error.message}"


def check(overlay):
    resources = render(overlay)
    namespace = of_kind(resources, "Namespace")[0]["metadata"]["name"]
    secrets = made_secrets(namespace)
    yield from schema_faults(resources + secrets)
    yield from faults(resources)
    keys = {one["metadata"]["name"]: one["stringData"] for one in secrets}
    yield from secrets_hold_what_is_asked(resources, keys)
    kinds = sorted({one["kind"] for one in resources})
    print(f"{overlay}: {len(resources)} resources ({', '.join(kinds)}), Kubernetes {VERSIONS[0]} to {VERSIONS[-1]}")


def main():
    found = [f"{overlay}: {fault}" for overlay in OVERLAYS for fault in check(overlay)]
    for fault in found:
        print(fault, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
