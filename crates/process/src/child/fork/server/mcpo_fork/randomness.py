"""Random numbers: if they are drawn before the fork, they are the same in all processes."""

import os
import sys

INTERMEDIATE = {"random", "secrets", "uuid"}  # they draw for their callers
# Modules whose numbers, drawn at import, `reseed` replaces in each process.
RESEEDED = {"multiprocessing.process", "numpy.random.mtrand", "tempfile"}
# Names that only have to differ within a process: keys of contexts, and ids of links on a terminal.
NAMES_ONLY = {("opentelemetry.context", "create_key"), ("rich.style", "<module>")}
DRAWS = "it draws random numbers"


def is_harmless(exclusions, frame=None):
    """Whether numbers drawn in this frame may be shared. Compiled modules have no frame: the module that is
    being imported counts."""
    while frame and frame.f_globals.get("__name__") in INTERMEDIATE | {__name__}:
        frame = frame.f_back
    places = [(exclusions.importing[-1], "<module>")] if exclusions.importing else []
    if frame:
        places.append((frame.f_globals.get("__name__"), frame.f_code.co_name))
    return any(place[0] in RESEEDED or place in NAMES_ONLY for place in places)


def patch(exclusions):
    """Excludes modules that draw random numbers while they are imported."""

    def watched(draw):
        def drawn(*args, **kwargs):
            if exclusions.watching and not is_harmless(exclusions, sys._getframe(1)):
                exclusions.exclude_current(DRAWS)
            return draw(*args, **kwargs)

        return drawn

    os.urandom = watched(os.urandom)
    if hasattr(os, "getrandom"):
        os.getrandom = watched(os.getrandom)
    import random  # after the replacement: it keeps a reference to `os.urandom`

    seed = random.Random.seed

    def seeded(self, a=None, version=2):
        if exclusions.watching and a is None and not is_harmless(exclusions, sys._getframe(1)):
            exclusions.exclude_current("it seeds a random generator")
        return seed(self, a, version)

    random.Random.seed = seeded


def reseed():
    """Draws new random state in a forked process."""
    modules = sys.modules
    modules["random"].seed()
    if "numpy.random.mtrand" in modules:
        modules["numpy.random.mtrand"].seed()
    if "multiprocessing.process" in modules:
        process = modules["multiprocessing.process"]
        process.current_process()._config["authkey"] = process.AuthenticationString(os.urandom(32))
