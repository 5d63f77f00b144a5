"""Draws docs/performance-warm.svg: requests/s through each proxy, of those through nginx, for every kind of request.

No background, and all text in a grey that can be read on white and on black: an image in a page knows nothing of the
page's colours."""

import html

COLOURS = {"direct": "#8c8c8c", "haproxy": "#4a90d9", "caddy": "#3aa675", "pocketfleet": "#e0782f"}
GREY, FAINT = "#808080", "#80808055"
WIDTH, LEFT, RIGHT, TOP = 780, 46, 10, 64
PANEL, BAR_HEIGHT, TITLE = 168, 104, 24


class Drawing:
    def __init__(self):
        self.parts = []

    def text(self, x, y, words, size=12, anchor="start", weight="normal"):
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" font-weight="{weight}" '
                          f'fill="{GREY}">{html.escape(words)}</text>')

    def line(self, x1, y1, x2, y2, colour, width=1.0):
        self.parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}"/>')

    def bar(self, x, y, width, height, colour, words):
        self.parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{max(height, 0.5):.1f}" fill="{colour}">'
                          f"<title>{html.escape(words)}</title></rect>")


def panel(drawing, top, name, columns, shown):
    """One kind of request: a group of bars for each number of connections."""
    highest = max(high for targets in columns.values() for target in shown if target in targets
                  for high in (targets[target]["vs_nginx"], *targets[target].get("vs_nginx_range", ())))
    step = 0.5 if highest <= 2.5 else 1.0
    scale = BAR_HEIGHT / max(highest, 1.2)
    base = top + TITLE + BAR_HEIGHT
    drawing.text(LEFT, top + 10, name, 13, weight="bold")
    for tick in range(int(highest / step) + 1):
        y = base - tick * step * scale
        drawing.line(LEFT, y, WIDTH - RIGHT, y, FAINT)
        drawing.text(LEFT - 6, y + 4, f"{tick * step:g}×", 11, "end")
    room = (WIDTH - LEFT - RIGHT) / len(columns)
    width = min(26.0, room / (len(shown) + 1.5))
    for index, (connections, targets) in enumerate(columns.items()):
        middle = LEFT + room * (index + 0.5)
        present = [target for target in shown if target in targets]
        for place, target in enumerate(present):
            value = targets[target]["vs_nginx"]
            low, high = targets[target].get("vs_nginx_range", (value, value))
            x = middle + (place - len(present) / 2) * width
            drawing.bar(x + 1, base - value * scale, width - 2, value * scale, COLOURS[target],
                        f"{target}: {value:.2f}× ({low:.2f}–{high:.2f})")
            drawing.line(x + width / 2, base - low * scale, x + width / 2, base - high * scale, GREY, 1.5)
        drawing.text(middle, base + 16, f"{connections} connection{'' if connections == '1' else 's'}", 11, "middle")
    drawing.line(LEFT, base - scale, WIDTH - RIGHT, base - scale, GREY, 1.5)


def warm(found):
    """The picture of what the scenario `warm` found, as the text of an SVG file."""
    panels = {}
    for name, targets in found.items():
        request, connections = name.rsplit(", ", 1)
        panels.setdefault(request, {})[connections] = targets
    shown = [target for target in COLOURS if any(target in targets for targets in found.values())]
    height = TOP + PANEL * len(panels)
    drawing = Drawing()
    drawing.text(LEFT, 20, "Requests/s through each, of those through nginx (the line at 1×); more is better", 14, weight="bold")
    for index, target in enumerate(shown):
        drawing.bar(LEFT + index * 110, 34, 12, 12, COLOURS[target], target)
        drawing.text(LEFT + index * 110 + 18, 44, target)
    for index, (name, columns) in enumerate(panels.items()):
        panel(drawing, TOP + index * PANEL, name, columns, shown)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
            'font-family="system-ui, sans-serif" role="img"><title>Requests/s of a warm instance through each proxy, of '
            "nginx</title>\n" + "\n".join(drawing.parts) + "\n</svg>\n")
