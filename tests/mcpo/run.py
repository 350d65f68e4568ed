"""Asks mcpo and the bridge the same, and tells where they differ: `tests/mcpo/run.py --help`."""

import argparse
import contextlib
import json
import sys

from cases import KINDS, PLAN, REASONS
from sides import ROOT, running, upstream

TABLE = ROOT / "docs/mcpo-cases.md"
HEAD = """# mcpo and the bridge, case by case

Written by `make test-mcpo`, which asks mcpo 0.0.20 and the bridge the same and fails if this page is not what they
answer. `mcpo.md` says in words what is different.
"""
SHOWN = 90  # letters of an answer in the table


def compare(only):
    """Every case with both answers, by group."""
    groups = {}
    for setup, plan in PLAN:
        if only and setup.name not in only:
            continue
        print(f"{setup.name} …", file=sys.stderr, flush=True)
        with contextlib.ExitStack() as stack:
            if "{UPSTREAM}" in json.dumps([setup.config, setup.command]):
                setup = stack.enter_context(upstream(setup, {"kinds": KINDS}))
            sides = stack.enter_context(running(setup))
            for group, cases in plan.items():
                groups[group] = [(case, [ask(case, side) for side in sides]) for case in cases]
    return groups


def ask(case, side):
    try:
        return case.ask(side)
    except Exception as fault:  # a view that finds nothing, a connection that broke
        return f"{type(fault).__name__}: {fault}"


def equal(answers):
    """As JSON: Python takes 1 and 1.0 and True for the same."""
    return json.dumps(answers[0], sort_keys=True) == json.dumps(answers[1], sort_keys=True)


def verdict(case, answers):
    if equal(answers):
        return "same" if case.better is None else "no longer different: take its reason away"
    return REASONS[case.better] if case.better else "WORSE, or without a reason"


def is_good(case, answers):
    return equal(answers) == (case.better is None)


def shown(answer):
    text = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
    text = text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
    return text.replace("|", "\\|").replace("<", "&lt;").replace("`", "'")


def table(groups):
    total = [(case, answers) for cases in groups.values() for case, answers in cases]
    same = sum(equal(answers) for _, answers in total)
    better = sum(not equal(answers) and case.better is not None for case, answers in total)
    counts = f"{len(total)} cases: {same} the same, {better} better on purpose, {len(total) - same - better} worse."
    lines = [HEAD, f"**{counts}**", ""]
    for group, cases in groups.items():
        lines += [f"## {group}", "", "| asked | mcpo | bridge | |", "|---|---|---|---|"]
        for case, answers in cases:
            bridge = "as mcpo" if equal(answers) else shown(answers[1])
            lines.append(f"| {shown(case.name)} | {shown(answers[0])} | {bridge} | {verdict(case, answers)} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n", counts


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--update", action="store_true", help=f"write {TABLE.relative_to(ROOT)} anew")
    parser.add_argument("--only", action="append", metavar="SETUP", help="run these setups only; print, compare no page")
    chosen = parser.parse_args()
    groups = compare(chosen.only)
    page, counts = table(groups)
    bad = [(group, case, answers) for group, all in groups.items() for case, answers in all if not is_good(case, answers)]
    print(page if chosen.only else counts)
    for group, case, answers in bad:
        print(f"\n{group}: {case.name}: {verdict(case, answers)}")
        for name, answer in zip(("mcpo", "bridge"), answers, strict=True):
            print(f"  {name:6} {json.dumps(answer, ensure_ascii=False)}")
    if not bad and not chosen.only:
        if chosen.update:
            TABLE.write_text(page)
        elif TABLE.read_text() != page:
            bad.append(TABLE)
            print(f"{TABLE.relative_to(ROOT)} says something else: look at it after `make test-mcpo MCPO_ARGS=--update`")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
