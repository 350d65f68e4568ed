# /// script
# requires-python = ">=3.11"
# dependencies = ["mcp==2.3.0", "matplotlib==3.11.2", "openpyxl==3.1.5"]
# ///
"""An example server that draws a picture of a workbook's numbers, for slides to use.

excel-mcp-server makes charts that live inside a workbook, and powerpoint needs a picture file.
Started in the chat's folder, this server reads the workbook that excel left there, and leaves a
PNG for powerpoint: `uv run --script examples/chart_server.py`.
"""

from pathlib import Path
from typing import Literal

import matplotlib

matplotlib.use("Agg")  # no display

from matplotlib import font_manager, pyplot
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from openpyxl import load_workbook

# matplotlib's own font has no Japanese, Chinese or Korean: these come after it, where they are installed.
CJK_FONTS = ("Noto Sans CJK JP", "IPAexGothic", "Hiragino Sans", "Yu Gothic")
installed = {font.name for font in font_manager.fontManager.ttflist}
pyplot.rcParams["font.family"] = ["DejaVu Sans", *(name for name in CJK_FONTS if name in installed)]

server = MCPServer("chart")


def plain(name: str, ending: str) -> Path:
    if Path(name).name != name or not name.endswith(ending):
        raise ToolError(f"{name!r} is no plain file name that ends with {ending}")
    return Path(name)


def number(value: object, label: str) -> float:
    if not isinstance(value, int | float):
        # Excel calculates formulas when it opens the file; nobody has done so yet.
        raise ToolError(f"{label!r} has no number in it: formulas cannot be drawn, only values")
    return float(value)


@server.tool()
def draw_chart(
    workbook: str,
    sheet: str,
    range: str,
    picture: str = "chart.png",
    kind: Literal["bar", "line", "pie"] = "bar",
    title: str = "",
) -> str:
    """Draws a block of a workbook as a PNG picture and saves it under a plain name.

    The block's first row holds the headings, its first column the labels, each further column
    a series of numbers: draw_chart("report.xlsx", "Sales", "A1:C4", "sales.png").
    """
    book = load_workbook(plain(workbook, ".xlsx"), data_only=True)
    heading, *rows = [[cell.value for cell in row] for row in book[sheet][range]]
    labels = [str(row[0]) for row in rows]
    figure, axes = pyplot.subplots(figsize=(8, 4.5), dpi=150, layout="constrained")
    for column, name in enumerate(heading[1:], 1):
        values = [number(row[column], row[0]) for row in rows]
        if kind == "pie":
            axes.pie(values, labels=labels, autopct="%1.0f%%")
            break  # a pie has one series
        if kind == "line":
            axes.plot(labels, values, marker="o", label=str(name))
        else:
            width = 0.8 / (len(heading) - 1)
            places = [place - 0.4 + width * (column - 0.5) for place, _ in enumerate(labels)]
            axes.bar(places, values, width, label=str(name))
            axes.set_xticks([place for place, _ in enumerate(labels)], labels)
    if kind != "pie":
        axes.legend()
    axes.set_title(title)
    figure.savefig(plain(picture, ".png"))
    pyplot.close(figure)
    return f"Saved {picture}"


if __name__ == "__main__":
    server.run()
