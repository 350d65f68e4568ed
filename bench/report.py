"""What a run found: a table for people, a JSON object for programs."""

import json
import os
import platform
from pathlib import Path

COLUMNS = ("", "p50 ms", "p99 ms", "calls/s", "p50 by round", "x {baseline}")


def milliseconds(nanoseconds):
    return nanoseconds / 1e6


def row(name, samples, baseline):
    medians = [milliseconds(median) for median in samples.medians()]
    ratio = samples.percentile(50) / baseline.percentile(50)
    return (
        name,
        f"{milliseconds(samples.percentile(50)):.3f}",
        f"{milliseconds(samples.percentile(99)):.3f}",
        f"{samples.calls_per_second():,.0f}",
        f"{min(medians):.3f} - {max(medians):.3f}",
        f"{ratio:.2f}",
    )


def table(results, baseline):
    """`results` (name → Samples) against the one named `baseline`."""
    heads = tuple(column.format(baseline=baseline) for column in COLUMNS)
    rows = [heads] + [row(name, samples, results[baseline]) for name, samples in results.items()]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        cells = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        lines.append("  ".join([name.ljust(widths[0]), *cells]))
    return "\n".join(lines)


def machine():
    """Where it ran, without a name that tells whose machine it is."""
    cpu = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
            break
    load = ", ".join(f"{average:.2f}" for average in os.getloadavg())
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load at start": load,
    }


def as_json(results, plan, host, versions):
    found = {
        name: {
            "p50_ms": milliseconds(samples.percentile(50)),
            "p99_ms": milliseconds(samples.percentile(99)),
            "calls_per_second": samples.calls_per_second(),
            "p50_ms_by_round": [milliseconds(median) for median in samples.medians()],
            "calls": len(samples.all()),
        }
        for name, samples in results.items()
    }
    return json.dumps({"plan": vars(plan), "machine": host, "versions": versions, "results": found}, indent=2)
