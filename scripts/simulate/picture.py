"""Curves of several policies over the load, as SVG, without a library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT, _MARGIN, _LEGEND = 720, 260, 56, 190
_COLOURS = ("#999999", "#c44e52", "#4c72b0", "#8172b3", "#55a868", "#dd8452")


@dataclass(frozen=True, slots=True)
class Curve:
    """Points (x, y) in the order of x."""

    points: list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Panel:
    """Curves by name over one axis, which begins at zero, or at a power of ten if it is logarithmic."""

    title: str
    curves: Mapping[str, Curve]
    is_logarithmic: bool = False

    @property
    def y_range(self) -> tuple[float, float]:
        """The ends of the axis."""
        values = [y for curve in self.curves.values() for _, y in curve.points]
        if not self.is_logarithmic:
            return 0.0, _round_up(max(values))
        return 10.0 ** math.floor(math.log10(min(values))), 10.0 ** math.ceil(math.log10(max(values)))

    def height_of(self, y: float) -> float:
        """Where a value lies on the axis, from 0 to 1."""
        low, high = self.y_range
        if self.is_logarithmic:
            return (math.log10(y) - math.log10(low)) / (math.log10(high) - math.log10(low))
        return (y - low) / (high - low)


def draw(x_title: str, panels: Sequence[Panel]) -> str:
    """One panel above the other; curves have the same colours in each."""
    drawn = "".join(_panel(panel, x_title, number * _HEIGHT) for number, panel in enumerate(panels))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT * len(panels)}" '
        f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>{drawn}</svg>\n'
    )


def _panel(panel: Panel, x_title: str, top: int) -> str:
    across_values = [x for curve in panel.curves.values() for x, _ in curve.points]
    x_low, x_high = min(across_values), max(across_values)
    y_low, y_high = panel.y_range
    width, height = _WIDTH - 2 * _MARGIN - _LEGEND, _HEIGHT - _MARGIN - 28
    bottom = top + 28 + height

    def place(x: float, y: float) -> str:
        across = (x - x_low) / (x_high - x_low) if x_high > x_low else 0.5
        return f"{_MARGIN + width * across:.1f},{bottom - height * panel.height_of(y):.1f}"

    parts = [
        f'<text x="{_MARGIN}" y="{top + 18}" font-weight="bold">{escape(panel.title)}</text>',
        f'<path d="M{_MARGIN} {top + 28}V{bottom}H{_MARGIN + width}" fill="none" stroke="gray"/>',
        f'<text x="{_MARGIN - 6}" y="{top + 34}" text-anchor="end">{y_high:g}</text>',
        f'<text x="{_MARGIN - 6}" y="{bottom}" text-anchor="end">{y_low:g}</text>',
        f'<text x="{_MARGIN}" y="{bottom + 16}">{x_low:g}</text>',
        f'<text x="{_MARGIN + width}" y="{bottom + 16}" text-anchor="end">{x_high:g} {escape(x_title)}</text>',
    ]
    for number, (name, curve) in enumerate(panel.curves.items()):
        colour, y_name = _COLOURS[number % len(_COLOURS)], top + 40 + 18 * number
        line = " ".join(place(x, y) for x, y in curve.points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for x, y in curve.points:
            across, up = place(x, y).split(",")
            parts.append(f'<circle cx="{across}" cy="{up}" r="3" fill="{colour}"/>')
        parts.append(f'<text x="{_WIDTH - _LEGEND - 30}" y="{y_name}" fill="{colour}">{escape(name)}</text>')
    return "".join(parts)


def _round_up(value: float) -> float:
    """The next number with one digit that is not zero, such as 3 or 0.5 or 200."""
    if value <= 0:
        return 1.0
    step = 10.0 ** math.floor(math.log10(value))
    return float(math.ceil(value / step) * step)
