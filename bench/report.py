"""What a run found: a table for people, a JSON object for programs."""

import json
import os
import platform
from pathlib import Path

COLUMNS = ("", "p50 ms", "p99 ms", "calls/s", "p50 by round")


def milliseconds(nanoseconds):
    return nanoseconds / 1e6


def row(name, samples, baselines):
    medians = [milliseconds(median) for median in samples.medians()]
    p50 = samples.percentile(50)
    return (
        name,
        f"{milliseconds(p50):.3f}",
        f"{milliseconds(samples.percentile(99)):.3f}",
        f"{samples.calls_per_second():,.0f}",
        f"{min(medians):.3f} - {max(medians):.3f}",
        *(f"{p50 / baseline.percentile(50):.2f}" for baseline in baselines),
    )


def table(results, baselines, missing=()):
    """`results` (name → Samples) with a column of p50 ratios to each of the named `baselines`."""
    heads = (*COLUMNS, *(f"x {baseline}" for baseline in baselines))
    rows = [heads] + [row(name, samples, [results[one] for one in baselines]) for name, samples in results.items()]
    rows += [(name, "missing", *["-"] * (len(heads) - 2)) for name in missing]
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


def as_json(results, plan, host, versions, missing):
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
    everything = {"plan": vars(plan), "machine": host, "versions": versions, "results": found, "missing": missing}
    return json.dumps(everything, indent=2)
