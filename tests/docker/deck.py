"""A deck as a chat makes one, with Japanese in text, in a chart and in a picture."""

import io

from pptx import Presentation
from pptx.enum.shapes import MSO_SHAPE_TYPE
from web import wait_for

CHART = {"command": "uv", "args": ["run", "--quiet", "--script", "/app/examples/chart_server.py"]}
TITLE = "四半期の売上"
MONTHS = ["一月", "二月", "三月"]


def make(call):
    """Three servers in one chat; returns the answer that holds the link."""
    call("excel", "create_workbook", path="report.xlsx", sheets=["売上", "別"], overwrite=True)
    rows = [["月", "売上"], *([month, value] for month, value in zip(MONTHS, (100, 150, 210), strict=True))]
    call("excel", "write_range", path="report.xlsx", sheet="売上", at="A1", rows=rows)
    call("chart", "draw_chart", workbook="report.xlsx", sheet="売上", range="A1:B4", picture="sales.png", title=TITLE)

    def ppt(tool, **arguments):
        answer = call("powerpoint", tool, presentation_id="deck", **arguments)
        assert "error" not in answer, answer
        return answer

    made = call("powerpoint", "create_presentation_from_template", template_path="template.pptx", id="deck")
    assert "/app/assets" in str(made), made
    ppt("add_slide", layout_index=5, title=TITLE)
    ppt("manage_image", slide_index=0, operation="add", image_source="sales.png", left=0.6, top=2, width=6)
    ppt("add_chart", slide_index=0, chart_type="column", left=7, top=2, width=5.8, height=3.4, categories=MONTHS,
        series_names=["売上"], series_values=[[100, 150, 210]], title=TITLE)  # fmt: skip
    return ppt("save_presentation", file_path="四半期.pptx")


def link(answer):
    (file,) = answer["files"]
    return file["url"]


def check(data):
    slide, *others = Presentation(io.BytesIO(data)).slides
    kinds = [shape.shape_type for shape in slide.shapes]
    assert not others
    assert MSO_SHAPE_TYPE.PICTURE in kinds, kinds
    assert slide.shapes.title.text == TITLE
    (chart,) = (shape.chart for shape in slide.shapes if shape.has_chart)
    assert list(chart.plots[0].categories) == MONTHS


def glyphs_are_there(call, download):
    """Without a font for it every character is drawn as the same box, and so are these two titles."""
    pictures = []
    for name, title in (("a.png", "東京"), ("b.png", "大阪")):
        answer = call(
            "chart", "draw_chart", workbook="report.xlsx", sheet="売上", range="A1:B4", picture=name, title=title
        )
        pictures.append(download(link(answer)))
    again = call(
        "chart", "draw_chart", workbook="report.xlsx", sheet="売上", range="A1:B4", picture="c.png", title="大阪"
    )
    # The same twice is the same picture: the difference above is the title's.
    assert download(link(again)) == pictures[1]
    return pictures[0] != pictures[1]


def wait_until_offered(stack, *servers):
    """Packages are downloaded at a server's first start."""

    def ready(server):
        said = stack.exec("mcpo-bridge", "curl", "-s", "http://localhost:8080/health")
        return f'"{server}":{{"status":"ready"' in said

    for server in servers:
        wait_for(f"{server} is offered", lambda server=server: ready(server), 240)
