"""A server that tells what must be its own, and leaves traces for those after it. Imported ahead."""

import builtins
import json
import os
import random
import secrets
import ssl
import sys
import tempfile
import uuid
from multiprocessing import current_process

import canary_holds

written = []


def of_packages():
    """Where they are installed."""
    if "numpy" in sys.modules:
        import numpy.random

        yield "numpy", numpy.random.random()
    if canary_holds.server:
        layers = canary_holds.server._lowlevel_server.middleware
        (security,) = [layer._security for layer in layers if hasattr(layer, "_security")]
        yield "request state", security.codec._mint_kid.hex()  # a name that is made of the key


def tell():
    written.append(1)
    builtins.trace = getattr(builtins, "trace", 0) + 1
    os.environ["TRACE"] = str(int(os.environ.get("TRACE", 0)) + 1)
    own = {
        "random": random.getrandbits(64),
        "secrets": secrets.token_hex(8),
        "uuid": str(uuid.uuid4()),
        "system": os.urandom(8).hex(),
        "ssl": ssl.RAND_bytes(8).hex(),
        "authkey": bytes(current_process().authkey).hex(),
        "temporary": tempfile.mkdtemp(),
        "key at import": canary_holds.KEY,
        "generator at import": canary_holds.generator.getrandbits(64),
        **dict(of_packages()),
    }
    one = {
        "globals": len(written),
        "builtins": builtins.trace,
        "environment": os.environ["TRACE"],
        "file": canary_holds.grown(),
    }
    folder = {"cwd": os.getcwd(), "kept": canary_holds.FOLDER, "variable": os.environ["MCPO_WORKDIR"]}
    return {"own": own, "one": one, "folder": folder}


if __name__ == "__main__":
    print(json.dumps(sys.modules["canary"].tell() if "canary" in sys.modules else tell()))
    sys.stdout.flush()
    os._exit(0)
