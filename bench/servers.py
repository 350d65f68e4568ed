"""The real servers of the example, as each contender understands them."""

import json

from bench.contender import ROOT

EXAMPLE = json.loads((ROOT / "mcp-servers.json.example").read_text())["mcpServers"]
TIME_TOOL, TIME_ARGUMENTS = "get_current_time", {"timezone": "Etc/UTC"}
EXCEL_TOOL, EXCEL_ARGUMENTS = "create_workbook", {"path": "report.xlsx", "sheets": ["Sales"]}


def ours(name, **more):
    """As the bridge has it."""
    kept = {key: value for key, value in EXAMPLE[name].items() if not key.startswith("//")}
    if "env" in kept:
        kept["env"] = {key: value.replace(":-/app/assets", f":-{ROOT / 'assets'}") for key, value in kept["env"].items()}
    return kept | more


def plain(name, folder="."):
    """Command, arguments and environment, with nothing that only the bridge knows."""
    said = ours(name)
    arguments = [filled(argument, folder) for argument in said["args"]]
    found = {"command": said["command"], "args": arguments}
    return found | ({"env": {"PPT_TEMPLATE_PATH": str(ROOT / "assets")}} if "env" in said else {})


def command(name, folder="."):
    said = plain(name, folder)
    return [said["command"], *said["args"]]


def filled(argument, folder):
    return argument.replace("{MCPO_WORKDIR}", str(folder)).replace("${TZ:-UTC}", "UTC")
