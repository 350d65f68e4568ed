"""A call of an open chat: in folders of several sizes, when it saves a file, and with excel."""

import itertools
import json
import tempfile
from contextlib import ExitStack
from pathlib import Path

from bench import mcp, servers
from bench.contender import Fault, Missing, Target, program
from bench.contenders import Bridge
from bench.findings import Measured, compared, shown
from bench.load import alternating, run, under_load

ABOUT = "A call of an open chat, which has its own process and folder, beside the same child over its pipes"
HEADS = ["", "p50 ms", "p99 ms", "CPU ms/call", "errors"]
FILES = [0, 1_000, 10_000]  # in the folder
SAVED = {"10 KB": 10_000, "20 MB": 20_000_000}
ROWS = [[f"r{row}c{column}" for column in range(5)] for row in range(20)]
USERS = itertools.count(1)
BOOK = {"path": "report.xlsx", "sheet": "Sales", "at": "A1", "rows": ROWS}


def measure(bench):
    found = Measured("workspace", ABOUT, HEADS)
    child = str(program("echo"))
    with ExitStack() as stack:
        # Files are saved without end: the limits are not what is measured.
        limits = {"MCPO_MAX_WORKSPACE_BYTES": str(1 << 40), "MCPO_FILE_EXPIRY": "60", "MCPO_FILE_RETENTION": "3600"}
        limits |= {"MCPO_MAX_WORKSPACE_FILES": "100000"}
        bridge = Bridge(bench.binary, {"child": {"command": child}, "excel": servers.ours("excel")}, **limits)
        bench.use(bridge)
        bench.prepare(bridge)
        stack.enter_context(bridge)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mcpo-bench-")))
        jobs = {}
        for files in FILES:
            name = f"echo, {files:,} files" if files else "echo, empty folder"
            jobs[f"bridge: {name}"] = calls(bench, bridge, chat_with(bridge, files), "child/echo", {"text": "call {n}"})
        jobs["stdio: echo"] = over_stdio(bench, [child], "echo", {"text": "call {n}"})
        for name, size in SAVED.items():
            arguments = {"name": "saved.bin", "bytes": size}
            few = ["--calls", 30] if size > 1 << 20 else []
            chat = chat_with(bridge, 0)
            jobs[f"bridge: {name} saved"] = calls(bench, bridge, chat, "child/write", arguments, few, expect="/files/")
            jobs[f"stdio: {name} saved"] = over_stdio(bench, inside(folder, [child]), "write", arguments, few)
        try:
            chat = chat_with(bridge, 0)
            asked(bridge, chat, f"excel/{servers.EXCEL_TOOL}", servers.EXCEL_ARGUMENTS)
            few = ["--calls", 100]
            jobs["bridge: excel write_range"] = calls(bench, bridge, chat, "excel/write_range", BOOK, few, "/files/")
            excel = inside(folder, servers.command("excel", folder))
            jobs["stdio: excel write_range"] = over_stdio(bench, excel, "write_range", BOOK, few, servers.EXCEL_ARGUMENTS)
        except (Missing, Fault) as why:
            found.missing("excel write_range", why)
        times = alternating(jobs, bench.rounds, found.missing)
    for name, measured in times.items():
        cells = [shown(measured[key], 3) for key in ("p50_ms", "p99_ms")] + [shown(measured.get("cpu_ms"), 3)]
        found.rows.append([name, *cells, str(measured["errors"])])
        if measured["errors"]:
            found.notes.append(f"{name}: {measured['first_error']}")
    p50 = {name: measured["p50_ms"] for name, measured in times.items()}
    excel, alone = p50.get("bridge: excel write_range"), p50.get("stdio: excel write_range")
    many, empty = p50.get(f"bridge: echo, {FILES[-1]:,} files"), p50.get("bridge: echo, empty folder")
    found.verdicts += [
        compared("excel write_range in an open chat: p50", "≤ 1.05 × its pipes", excel, alone, 1.05, unit=" ms"),
        compared("a call in a folder with 10,000 files: p50", "≤ 2 × an empty folder", many, empty, 2, unit=" ms"),
    ]
    return found


def chat_with(bridge, files):
    """The headers of a chat whose folder has so many files, which no call changes any more."""
    user = f"user-{next(USERS)}"
    chat = {"X-OpenWebUI-User-Id": user, "X-OpenWebUI-Chat-Id": "chat"}
    # Its name tells the folder from those of warm processes.
    name = f"of-{user}"
    asked(bridge, chat, "child/write", {"name": name, "bytes": 1})
    (file,) = (bridge.folder / "jobs").glob(f"*/work/{name}")
    work = file.parent
    for number in range(files):
        folder = work / f"folder-{number // 500}"
        folder.mkdir(exist_ok=True)
        (folder / f"{number}.txt").write_text("x")
    if files:
        asked(bridge, chat, "child/echo", {"text": "hello"})
    return chat


def asked(bridge, chat, path, arguments):
    status, _, said = mcp.post(bridge.port, f"/mcpo/{path}", json.dumps(arguments), chat)
    if status != 200:
        raise Fault(f"{path} was answered {status}: {said[:500]!r}")


def calls(bench, bridge, chat, path, arguments, few=(), expect=""):
    target = Target(bridge.port, f"/mcpo/{path}", json.dumps(arguments), chat)
    options = few or ["--warm", bench.seconds / 4, "--seconds", bench.seconds]
    return lambda: under_load(bridge, target, *options, expect=expect)


def over_stdio(bench, command, tool, arguments, few=(), before=None):
    first = [mcp.message("initialize", mcp.HELLO, 1), mcp.message("notifications/initialized")]
    line = [program("load"), *(few or ["--warm", bench.seconds / 4, "--seconds", bench.seconds])]
    line += ["--body", mcp.call(tool, arguments)]
    for one in first:
        line += ["--first", one]
    if before:
        made = mcp.message("tools/call", {"name": servers.EXCEL_TOOL, "arguments": before}, 2)
        line += ["--first", made]
    return lambda: run([*line, "--stdio", *command])


def inside(folder, command):
    return ["sh", "-c", 'cd "$0" && exec "$@"', str(folder), *command]
