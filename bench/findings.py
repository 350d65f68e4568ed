"""What a measure hands back."""

from dataclasses import dataclass, field


@dataclass
class Verdict:
    """One "must", and whether it is met: `None` where nothing could be compared."""

    measure: str
    must: str
    ours: str = "-"
    other: str = "-"
    ratio: float | None = None
    #: The ratio that is asked for.
    bound: float = 1.0
    #: Whether less is better.
    at_most: bool = True
    why: str = ""

    @property
    def met(self):
        if self.ratio is None:
            return None
        return self.ratio <= self.bound if self.at_most else self.ratio >= self.bound

    @property
    def margin(self):
        """How many times better than asked for."""
        if not self.ratio:
            return None
        return self.bound / self.ratio if self.at_most else self.ratio / self.bound


@dataclass
class Measured:
    name: str
    about: str
    heads: list
    rows: list = field(default_factory=list)
    verdicts: list = field(default_factory=list)
    notes: list = field(default_factory=list)
    #: name → value, for the plot.
    chart: dict = field(default_factory=dict)
    #: Whether it came to its end.
    whole: bool = True

    @classmethod
    def failed(cls, name, why):
        """A measure of which there is nothing, and that nobody takes for one that was met."""
        verdict = Verdict(f"{name}: the measure failed", "all of it")
        return cls(name, f"The measure *{name}* failed", ["", ""], [["why", first_line(why)]], [verdict], whole=False)

    def missing(self, name, why):
        self.rows.append([name, "missing", *["-"] * (len(self.heads) - 2)])
        self.notes.append(f"{name} is missing: {why}")


def first_line(why):
    lines = str(why).strip().splitlines()
    return (lines[0] if lines else type(why).__name__).replace("|", "/")


def shown(value, digits=2):
    """A number as people read it."""
    if value is None:
        return "-"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{digits}f}" if abs(value) < 100 else f"{value:.0f}"


def compared(measure, must, ours, other, bound, *, unit="", at_most=True):
    """A verdict on `ours` beside `other`; either may be `None`."""
    ratio = ours / other if ours is not None and other else None
    told = [shown(value) + unit if value is not None else "-" for value in (ours, other)]
    return Verdict(measure, must, *told, ratio, bound, at_most)
