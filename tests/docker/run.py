"""Builds the image from a clean checkout and runs the tests beside this file: `scripts/test-docker`."""

import argparse
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

import stand_ins

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PARTS = sorted(path.stem.removeprefix("test_") for path in HERE.glob("test_*.py"))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"only these of: {', '.join(PARTS)}")
    parser.add_argument("--keep-image", action="store_true", help="leave the images for the next run")
    wanted = parser.parse_args()
    unknown = set(wanted.parts) - set(PARTS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")

    # Below the checkout, because an engine in a virtual machine sees home folders but no /tmp.
    (ROOT / ".run").mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="docker-test-", dir=ROOT / ".run"))
    tag = f"test-{secrets.token_hex(3)}"
    os.environ.update(MCPO_TEST_FOLDER=str(folder), MCPO_IMAGE_TAG=tag)
    made = []
    try:
        made = stand_ins.ensure(stand_ins.named())
        clone(folder / "clone")
        build(folder / "clone")
        sys.path.insert(0, str(HERE))
        names = [f"test_{part}" for part in wanted.parts or PARTS]
        suite = unittest.defaultTestLoader.loadTestsFromNames(names)
        result = unittest.TextTestRunner(verbosity=2).run(suite)
        return 0 if result.wasSuccessful() else 1
    finally:
        if not wanted.keep_image:
            stand_ins.remove([*made, f"mcpo-bridge:{tag}"])
        shutil.rmtree(folder)


def clone(target):
    """What a clone of this working tree would have: no ignored files, no config of somebody's."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        source = ROOT / name
        if source.is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name)


def build(checkout):
    began = time.monotonic()
    subprocess.run(["docker", "compose", "--progress", "plain", "build", "mcpo-bridge"], cwd=checkout, check=True)
    size = subprocess.run(
        ["docker", "image", "inspect", "-f", "{{.Size}}", f"mcpo-bridge:{os.environ['MCPO_IMAGE_TAG']}"],
        check=True,
        capture_output=True,
        text=True,
    )
    print(f"built in {time.monotonic() - began:.0f} s, {int(size.stdout) / 1e6:.0f} MB", flush=True)


sys.exit(main())
