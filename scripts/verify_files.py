"""Opens what the file-making servers wrote, and fails where it is not what was asked for.

    uv run --with openpyxl --with python-pptx scripts/verify_files.py report.xlsx --cell Sales!B2=100
    uv run --with openpyxl --with python-pptx scripts/verify_files.py deck.pptx \
        --slides 3 --text "Quarter one" --pictures 1 --charts 1

Without conditions it prints what the file holds. The exit code is 1 when a condition fails.
"""

import argparse
import sys
from pathlib import Path


def workbook(path, wanted):
    from openpyxl import load_workbook

    book = load_workbook(path)
    for sheet in book.worksheets:
        charts, pictures = len(sheet._charts), len(sheet._images)
        print(f"sheet {sheet.title!r} {sheet.dimensions} charts={charts} pictures={pictures}")
        for row in sheet.iter_rows(values_only=True):
            print("  ", *("" if value is None else value for value in row), sep="\t")
    for condition in wanted.cell:
        place, _, expected = condition.partition("=")
        sheet, _, cell = place.rpartition("!")
        found = (book[sheet] if sheet else book.active)[cell].value
        yield str(found) == expected, f"{place} is {found!r}, wanted {expected!r}"
    yield from counted("charts", wanted.charts, sum(len(s._charts) for s in book.worksheets))
    yield from counted("pictures", wanted.pictures, sum(len(s._images) for s in book.worksheets))


def deck(path, wanted):
    from pptx import Presentation
    from pptx.enum.shapes import MSO_SHAPE_TYPE

    slides = list(Presentation(path).slides)
    texts, pictures, charts = [], 0, 0
    for number, slide in enumerate(slides, 1):
        print(f"slide {number} ({slide.slide_layout.name})")
        for shape in slide.shapes:
            chart, picture = shape.has_chart, shape.shape_type == MSO_SHAPE_TYPE.PICTURE
            charts, pictures = charts + chart, pictures + picture
            text = shape.text_frame.text if shape.has_text_frame else ""
            if shape.has_table:
                text = " | ".join(cell.text for row in shape.table.rows for cell in row.cells)
            texts.append(text)
            size = f" {len(shape.image.blob)} bytes" if picture else ""
            print(f"   {shape.name}{size}: {text!r}")
    for text in wanted.text:
        yield any(text in found for found in texts), f"the text {text!r} is on a slide"
    yield from counted("slides", wanted.slides, len(slides))
    yield from counted("pictures", wanted.pictures, pictures)
    yield from counted("charts", wanted.charts, charts)


def counted(what, wanted, found):
    if wanted is not None:
        yield found == wanted, f"{what}: {found}, wanted {wanted}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--cell", action="append", default=[], metavar="SHEET!A1=VALUE")
    parser.add_argument("--text", action="append", default=[])
    for count in ("--slides", "--pictures", "--charts"):
        parser.add_argument(count, type=int)
    wanted = parser.parse_args()
    look = {".xlsx": workbook, ".xlsm": workbook, ".pptx": deck}.get(wanted.file.suffix.lower())
    if look is None:
        parser.error(f"{wanted.file} is neither a workbook nor a deck")
    failed = 0
    for good, said in look(wanted.file, wanted):
        print("ok  " if good else "FAIL", said)
        failed += not good
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
