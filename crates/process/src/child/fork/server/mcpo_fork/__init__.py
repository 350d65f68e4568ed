"""The parent of a Python server's processes: it imports the server's modules once, and then forks.

Run by `crates/process/src/child/fork/`, which speaks with it over the SEQPACKET socket that is its stdin:

    {"begin": …}     what runs. Answered by nothing.
    {"fork": …}      with four descriptors: stdin, stdout, stderr, and the socket of a supervisor.
                     The supervisor is made of this process, so that it is the new one's parent.
    {"preload": …}   import what the processes so far imported. Answered once by {"ready": …} or
                     {"unsupported": why}. To begin anew without a module, this program executes itself.

Nothing runs before the fork but imports. A module whose import draws random numbers, starts a
thread, opens a file, or keeps the working folder is not imported here: each process does that
itself, as if it had been started. Standard library only; Python 3.10 and newer.

    parent.py    the messages, and the rounds of imports until nothing is left behind
    watch.py     who is being imported, and who is to blame
    draws.py     random numbers
    state.py     what of the process an import may change
    captured.py  who keeps the working folder
    process.py   what a forked process does first
"""
