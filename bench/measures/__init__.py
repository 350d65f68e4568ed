"""What is measured, in the order of the table. Each module has `measure(bench) -> Measured`."""

from bench.measures import chat, download, echo, fresh, large, memory, start, workspace

#: name → module
EVERY = {
    "echo": echo,
    "fresh": fresh,
    "chat": chat,
    "workspace": workspace,
    "start": start,
    "large": large,
    "download": download,
    "memory": memory,
}
