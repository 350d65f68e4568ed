"""What the measuring asks of everything that it measures."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager


class Fault(Exception):
    """The run is worth nothing: says what happened, to what, and what to do where that is known."""


class Missing(Exception):
    """A contender cannot be had on this machine, and why: the run goes on, and says so."""


class Line(ABC):
    """One connection to a contender, for one caller at a time."""

    def wake(self) -> None:
        """Before each round: opens again what may have been closed for idling during the others' rounds."""

    @abstractmethod
    def call(self, text: str) -> str:
        """Lets the child echo `text` and returns what came back; anything else is a `Fault`."""

    @abstractmethod
    def close(self) -> None: ...


class Contender(AbstractContextManager):
    """Something that runs between `__enter__` and `__exit__`, and leaves nothing behind."""

    #: A short word for tables and plots.
    name: str
    #: What is measured, in a few words.
    about: str

    def install(self) -> None:
        """Gets what it needs to run, before anything runs; `Missing` if that cannot be had."""

    @abstractmethod
    def connect(self) -> Line: ...

    def version(self) -> str:
        """What runs, for the record."""
        return "-"
