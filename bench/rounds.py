"""Calling in rounds, and what the samples say."""

import gc
import math
import signal
import time
from contextlib import contextmanager
from dataclasses import dataclass, field

from bench.contender import Fault
from bench.echo_child import payload

HANG = 120  # seconds for one contender's round; a round takes a few


@dataclass(frozen=True)
class Plan:
    rounds: int
    calls: int  # timed calls of each contender in each round
    warm: int  # calls before them that are checked, but not timed
    size: int  # characters of each payload

    @property
    def total(self):
        return self.rounds * self.calls


@dataclass
class Samples:
    """Nanoseconds of each timed call, by round."""

    rounds: list[list[int]] = field(default_factory=list)

    def all(self):
        return sorted(sample for one in self.rounds for sample in one)

    def percentile(self, percent):
        return percentile(self.all(), percent)

    def calls_per_second(self):
        samples = self.all()
        return len(samples) * 1e9 / sum(samples)

    def medians(self):
        """Of each round: how far they lie apart is how quiet the machine was."""
        return [percentile(sorted(one), 50) for one in self.rounds]


def percentile(ordered, percent):
    """The nearest rank: a value that was measured, never one between two."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def order(items, turn):
    """Who comes first changes from round to round."""
    turn %= len(items)
    return items[turn:] + items[:turn]


def measure(lines, plan, progress=lambda turn: None):
    """Calls each of `lines` (name → Line) in every round and returns name → Samples."""
    samples = {name: Samples() for name in lines}
    numbers = iter(range(10**9))
    gc.disable()  # a collection would land on whoever is called at that moment
    try:
        for turn in range(plan.rounds):
            progress(turn)
            for name in order(list(lines), turn):
                with deadline(HANG, name):
                    samples[name].rounds.append(one_round(name, lines[name], plan, numbers))
                gc.collect()
    finally:
        gc.enable()
    return samples


def one_round(name, line, plan, numbers):
    line.wake()
    for _ in range(plan.warm):
        timed(name, line, payload(next(numbers), plan.size))
    return [timed(name, line, payload(next(numbers), plan.size)) for _ in range(plan.calls)]


def timed(name, line, text):
    """Nanoseconds for one call, whose answer is checked once the clock has stopped."""
    start = time.perf_counter_ns()
    echoed = line.call(text)
    took = time.perf_counter_ns() - start
    if echoed != text:
        raise Fault(f"{name}: sent {text!r}, got {echoed!r}")
    return took


@contextmanager
def deadline(seconds, name):
    def ring(*_):
        raise Fault(f"{name}: a round took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
