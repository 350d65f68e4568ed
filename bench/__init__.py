"""Measures the bridge beside what it could be compared with: one command, one run, one machine.

    python3 -m bench --help        (or `make bench`, which builds the release binaries first)

A contender (`bench/contenders/`) is a way to reach the same child. A measure (`bench/measures/`) puts
contenders under the same load in alternating rounds, so that whatever else the machine does meets
all of them, and holds what it found against what the bridge must do. The load itself comes from
`bench/programs/load.rs`. Answers are checked and errors counted. Standard library only.
"""
