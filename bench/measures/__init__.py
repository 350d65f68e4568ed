"""What is measured, in the order of the table. Each module has `measure(bench) -> Measured`."""

from bench.measures import chat, download, echo, fresh, large, memory, start

#: name → module
EVERY = {
    "echo": echo,
    "fresh": fresh,
    "chat": chat,
    "start": start,
    "large": large,
    "download": download,
    "memory": memory,
}
