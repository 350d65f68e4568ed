"""The run as a picture: how far each measure is from what it must be, and calls a second."""

import math
from html import escape

WIDTH, LEFT, RIGHT, BAR, GAP = 900, 330, 90, 16, 8
GOOD, BAD, OTHER = "#2a7f62", "#c0392b", "#8a94a6"
FONT = 'font-family="system-ui, sans-serif" font-size="12"'


def svg(found):
    verdicts = [v for measured in found for v in measured.verdicts if v.margin]
    margins = [
        (f"{v.measure} {v.must}", v.margin, GOOD if v.met else BAD, f"{v.margin:.2g} ×") for v in verdicts
    ]
    rates = [
        (name, value, GOOD if name.startswith("bridge") else OTHER, f"{value:,.0f}")
        for measured in found
        for name, value in sorted(measured.chart.items(), key=lambda pair: -pair[1])
    ]
    first, top = panel("How many times better than it must be (line: just met)", margins, 24, LEFT + 60, line=1)
    second, bottom = panel("Shared echo child, 64 callers: calls a second", rates, top + 34, LEFT - 170)
    parts = [*first, *second]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 10}" width="{WIDTH}" {FONT}>\n'
        f'<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def panel(title, bars, top, left, line=None):
    """Bars on a scale of tens, and where they end."""
    parts = [f'<text x="12" y="{top}" font-size="15" font-weight="600">{escape(title)}</text>']
    y = top + 14
    if not bars:
        return parts, y
    values = [value for _, value, _, _ in bars]
    low = math.floor(math.log10(min([*values, line or math.inf])) - 0.1)
    high = math.ceil(math.log10(max([*values, line or 0])))
    place = lambda value: left + (WIDTH - RIGHT - left) * (math.log10(value) - low) / max(1, high - low)  # noqa: E731
    bottom = y + len(bars) * (BAR + GAP)
    for power in range(low, high + 1):
        x = place(10**power)
        parts.append(f'<line x1="{x:.1f}" y1="{y}" x2="{x:.1f}" y2="{bottom}" stroke="#e3e7ee"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 13}" text-anchor="middle" fill="#667">{10.0**power:,g}</text>')
    for name, value, colour, told in bars:
        end = place(value)
        parts.append(f'<text x="{left - 8}" y="{y + 12}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<rect x="{left}" y="{y}" width="{max(1, end - left):.1f}" height="{BAR}" fill="{colour}"/>')
        parts.append(f'<text x="{end + 6:.1f}" y="{y + 12}" fill="#333">{escape(told)}</text>')
        y += BAR + GAP
    if line:
        x = place(line)
        parts.append(f'<line x1="{x:.1f}" y1="{top + 8}" x2="{x:.1f}" y2="{bottom}" stroke="#222" stroke-width="1.5"/>')
    return parts, bottom + 20
