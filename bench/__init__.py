"""Measures the bridge beside what it could be compared with: one command, one run, one machine.

    python3 -m bench --help        (or `make bench`, which builds the release binary first)

A contender (`bench/contenders/`) is a way to reach the same child. All are started, warmed and
then called in alternating rounds, so that whatever else the machine does meets all of them.
A wrong answer, an error or a hang ends the run: there are no numbers without right answers.
Standard library only.
"""
