"""What the bridge held over time, one panel for each measure."""

WIDTH, HEIGHT, LEFT, GAP = 900, 110, 80, 44
PANELS = (
    ("memory", "Resident memory of the bridge, MiB"),
    ("descriptors", "Open descriptors of the bridge"),
    ("threads", "Threads of the bridge"),
    ("processes", "Processes, the bridge included"),
    ("folders", "Folders of chats and calls"),
)
INK, LINE, GRID = "#222", "#2a7f62", "#e3e7ee"


def svg(samples):
    end = samples[-1]["second"] if samples else 1
    parts, top = [], 30
    for key, title in PANELS:
        parts += panel(title, [(sample["second"], sample[key]) for sample in samples], end, top)
        top += HEIGHT + GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" '
        'font-family="system-ui, sans-serif" font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def panel(title, points, end, top):
    most = max((value for _, value in points), default=1) or 1
    x = lambda second: LEFT + (WIDTH - LEFT - 20) * second / end  # noqa: E731
    y = lambda value: top + HEIGHT - HEIGHT * value / (most * 1.1)  # noqa: E731
    parts = [f'<text x="12" y="{top - 8}" font-size="14" font-weight="600" fill="{INK}">{title}</text>']
    for share in (0, 0.5, 1):
        at = y(most * share)
        parts.append(f'<line x1="{LEFT}" y1="{at:.1f}" x2="{WIDTH - 20}" y2="{at:.1f}" stroke="{GRID}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end" fill="#667">{most * share:,.0f}</text>')
    for minute in range(0, int(end // 60) + 1, max(1, int(end // 600))):
        parts.append(
            f'<text x="{x(minute * 60):.1f}" y="{top + HEIGHT + 14}" text-anchor="middle" fill="#667">{minute} min</text>'
        )
    line = " ".join(f"{x(second):.1f},{y(value):.1f}" for second, value in points)
    parts.append(f'<polyline points="{line}" fill="none" stroke="{LINE}" stroke-width="1.2"/>')
    return parts
