"""The parent of a Python server's processes: imports the server's modules once, then forks.

`crates/process/src/child/fork.rs` starts it. Its stdin is a SEQPACKET socket for messages:

    {"begin": …}     the program to run, with the supervisor's executable; no reply
    {"fork": …}      fork a process, with four descriptors: stdin, stdout, stderr, and the socket of its
                     supervisor. The supervisor is forked from this process, and is the parent of the new one.
    {"preload": …}   import the modules that earlier processes imported. The reply is {"ready": …} or
                     {"unsupported": why}. To exclude modules, this program executes itself again.

Only imports run before the fork. A module whose import draws random numbers, starts a thread, opens a
file, or keeps the working folder is not imported here: each process imports it itself. Uses the standard
library only; Python 3.10 and newer.

    parent.py      the messages, and the rounds of imports
    imports.py     tracks imports and excludes modules
    randomness.py  finds and replaces random numbers
    state.py       the state of the process that an import can change
    captured.py    finds modules that keep the working folder or the process ID
    process.py     sets up a forked process
"""
