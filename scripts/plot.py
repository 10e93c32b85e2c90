"""Lines over time as a picture: one panel each, in SVG, without a library."""

from __future__ import annotations

from dataclasses import dataclass

WIDTH, HEIGHT, MARGIN = 800, 220, 56


@dataclass(frozen=True, slots=True)
class Line:
    """A title and its points."""

    title: str
    points: list[tuple[float, float]]


def plot(x_title: str, lines: list[Line]) -> str:
    """An SVG document with one panel above the other; each starts at zero."""
    panels = "".join(_panel(line, x_title, number * HEIGHT) for number, line in enumerate(lines))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT * len(lines)}" '
        f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>{panels}</svg>\n'
    )


def _panel(line: Line, x_title: str, top: int) -> str:
    x_max = max((x for x, _ in line.points), default=1.0) or 1.0
    y_max = max((y for _, y in line.points), default=1.0) or 1.0
    width, height = WIDTH - 2 * MARGIN, HEIGHT - MARGIN
    bottom = top + HEIGHT - MARGIN / 2
    points = " ".join(f"{MARGIN + width * x / x_max:.1f},{bottom - height * y / y_max:.1f}" for x, y in line.points)
    return (
        f'<text x="{MARGIN}" y="{top + 16}">{line.title}</text>'
        f'<path d="M{MARGIN} {top + MARGIN / 2}V{bottom}H{MARGIN + width}" fill="none" stroke="gray"/>'
        f'<text x="{MARGIN - 6}" y="{bottom - height + 4:.0f}" text-anchor="end">{y_max:.0f}</text>'
        f'<text x="{MARGIN - 6}" y="{bottom:.0f}" text-anchor="end">0</text>'
        f'<text x="{MARGIN + width}" y="{bottom + 14:.0f}" text-anchor="end">{x_max:.1f} {x_title}</text>'
        f'<polyline points="{points}" fill="none" stroke="steelblue" stroke-width="1.5"/>'
    )
