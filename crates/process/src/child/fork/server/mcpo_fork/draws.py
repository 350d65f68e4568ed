"""Random numbers: drawn before the fork, they would be the same in all processes."""

import os
import sys

PASSING_ON = {"random", "secrets", "uuid"}  # they draw for others
# What these draw when they are imported, `draw_anew` draws again in each process.
DRAWN_ANEW = {"multiprocessing.process", "numpy.random.mtrand", "tempfile"}
# Names of things within the process, where only that they differ from each other counts: keys of
# contexts, and ids of links on a terminal.
NAMES_ONLY = {("opentelemetry.context", "create_key"), ("rich.style", "<module>")}
DRAWS = "it draws random numbers"


def are_harmless(taints, frame=None):
    """What is drawn in this frame, or by the module that is being imported: what is compiled has no frame."""
    while frame and frame.f_globals.get("__name__") in PASSING_ON | {__name__}:
        frame = frame.f_back
    places = [(taints.importing[-1], "<module>")] if taints.importing else []
    if frame:
        places.append((frame.f_globals.get("__name__"), frame.f_code.co_name))
    return any(place[0] in DRAWN_ANEW or place in NAMES_ONLY for place in places)


def watch(taints):
    """Whoever draws while it is imported is to blame."""

    def watched(draw):
        def drawn(*args, **kwargs):
            if taints.watching and not are_harmless(taints, sys._getframe(1)):
                taints.blame(DRAWS)
            return draw(*args, **kwargs)

        return drawn

    os.urandom = watched(os.urandom)
    if hasattr(os, "getrandom"):
        os.getrandom = watched(os.getrandom)
    import random  # not before: it keeps `os.urandom`

    seed = random.Random.seed

    def seeded(self, a=None, version=2):
        if taints.watching and a is None and not are_harmless(taints, sys._getframe(1)):
            taints.blame("it seeds a random generator")
        return seed(self, a, version)

    random.Random.seed = seeded


def draw_anew():
    """In each process."""
    modules = sys.modules
    modules["random"].seed()
    if "numpy.random.mtrand" in modules:
        modules["numpy.random.mtrand"].seed()
    if "multiprocessing.process" in modules:
        process = modules["multiprocessing.process"]
        process.current_process()._config["authkey"] = process.AuthenticationString(os.urandom(32))
