"""What a run found: tables for people, a JSON object for programs, a page for the docs."""

import json
import os
import platform
from dataclasses import asdict
from pathlib import Path

from bench.findings import shown

WORDS = {True: "yes", False: "**no**", None: "not compared"}


def table(heads, rows):
    """In Markdown, aligned for a terminal."""
    widths = [max(len(str(row[column])) for row in [heads, *rows]) for column in range(len(heads))]

    def line(cells):
        padded = [str(cell).rjust(width) for cell, width in zip(cells, widths, strict=True)]
        padded[0] = str(cells[0]).ljust(widths[0])
        return "| " + " | ".join(padded) + " |"

    marks = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(heads), line(marks), *map(line, rows)])


def of_measure(found):
    told = [f"## {found.about}", "", table(found.heads, found.rows)]
    told += [f"\n- {note}" for note in found.notes]
    return "\n".join(told)


def of_verdicts(verdicts):
    heads = ["measure", "must", "bridge", "beside", "ratio", "met"]
    rows = [[v.measure, v.must, v.ours, v.other, ratio(v), WORDS[v.met]] for v in verdicts]
    return table(heads, rows)


def ratio(verdict):
    if verdict.ratio is None:
        return "-"
    if verdict.at_most and verdict.ratio < 0.7:
        return f"1/{1 / verdict.ratio:.1f}"
    return shown(verdict.ratio)


def load():
    return ", ".join(f"{average:.1f}" for average in os.getloadavg())


def machine():
    """Where it ran, without a name that tells whose machine it is."""
    cpu = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
            break
    return {
        "processor": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GB",
        "kernel": platform.release(),
        "Python": platform.python_version(),
        "load at start": load(),
    }


def as_json(found, host, versions):
    measures = [asdict(measured) for measured in found]
    return json.dumps({"machine": host, "versions": versions, "measures": measures}, indent=2)


def page(found, host, bench):
    verdicts = [verdict for measured in found for verdict in measured.verdicts]
    about = "\n".join(f"- {what}: {value}" for what, value in host.items())
    versions = "\n".join(f"- {name}: {version}" for name, version in sorted(bench.versions.items()))
    measures = "\n\n".join(of_measure(measured) for measured in found)
    return f"""# Benchmarks

Written by `make bench BENCH_ARGS=--docs`: one run on one machine, everything side by side, the same
child and the same load for all of them. Absolute numbers are this machine's; compare the ratios.
What costs what, and which setting changes it, is in [performance.md](performance.md).

{of_verdicts(verdicts)}

![How far each measure is from what it must be](benchmarks.svg)

The load comes from `bench/programs/load.rs`: connections are kept, requests made ahead, answers
checked, errors counted. It runs on the same cores as what it drives. Contenders are called in
{bench.rounds} rounds, each in another order, and the tables show medians of these. *CPU* is the time of
the program and all processes below it. *Cold* is from the start to what it can first be asked.

A load average above {host["cores"] // 2} at start or end (see below) means that the machine had other work: then
differences of some 10 % say nothing, and a must that is met or missed by so little is neither.

{measures}

## Machine and versions

{about}

{versions}
"""
