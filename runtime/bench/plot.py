"""A load as a picture in SVG: when tokens came, and how long first tokens, gaps and answers took. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Final

from runtime.bench.figures import percentile
from runtime.bench.request import MeasuredRequest

_WIDTH: Final = 860
_HEIGHT: Final = 210
_LEFT: Final = 70
_RIGHT: Final = 30
_TOP: Final = 34
_BOTTOM: Final = 40
_MAX_POINTS: Final = 400
"""Points of one curve; more would not be seen."""
Points = Sequence[tuple[float, float]]


def plot(title: str, records: Sequence[MeasuredRequest]) -> str:
    """An SVG document: answer tokens a second over time, then three curves of shares of requests or gaps by time."""
    whole = [record for record in records if record.is_answered]
    firsts = [record.first_s - record.due_s for record in whole if record.first_s is not None]
    gaps = [gap_s for record in whole for gap_s in record.gaps_s]
    totals = [record.end_s - record.due_s for record in whole if record.end_s is not None]
    panels = [
        _panel("answer tokens a second", "seconds from the start", token_rates(records), ()),
        *(
            _panel(f"{name}: share of {what} that took no longer", "seconds", shares(values), values)
            for name, what, values in (
                ("time to first token", "answers", firsts),
                ("gap between tokens", "gaps", gaps),
                ("end to end", "answers", totals),
            )
        ),
    ]
    body = "".join(
        f'<g transform="translate(0 {_TOP + number * _HEIGHT})">{panel}</g>' for number, panel in enumerate(panels)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_TOP + _HEIGHT * len(panels)}" '
        f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
        f'<text x="{_LEFT}" y="22" font-size="14" font-weight="bold">{escape(title)}</text>{body}</svg>\n'
    )


def token_rates(records: Sequence[MeasuredRequest]) -> list[tuple[float, float]]:
    """Pieces of text a second, in each of up to 100 equal parts of the load: (its middle in seconds, the rate)."""
    moments: list[float] = []
    for record in records:
        if record.first_s is not None:
            moment_s = record.first_s
            moments.append(moment_s)
            for gap_s in record.gaps_s:
                moment_s += gap_s
                moments.append(moment_s)
    if not moments or max(moments) <= 0:
        return []
    end_s = max(moments)
    n_parts = min(100, max(1, math.ceil(end_s)))
    width_s, counts = end_s / n_parts, [0] * n_parts
    for moment_s in moments:
        counts[min(n_parts - 1, int(moment_s / width_s))] += 1
    return [((number + 0.5) * width_s, count / width_s) for number, count in enumerate(counts)]


def shares(values: Sequence[float]) -> list[tuple[float, float]]:
    """The curve of (value, percent of all values that are not above it)."""
    if not values:
        return []
    ordered, n_points = sorted(values), min(_MAX_POINTS, len(values))
    percents = [100 * number / max(1, n_points - 1) for number in range(n_points)]
    return [(percentile(ordered, percent), percent) for percent in percents]


def _panel(title: str, x_title: str, points: Points, values: Sequence[float]) -> str:
    """One panel, both axes from zero; the p50, p90 and p99 of ``values`` are marked."""
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    bottom = _TOP + height
    head = f'<text x="{_LEFT}" y="20">{escape(title)}</text>'
    if not points:
        return f'{head}<text x="{_LEFT}" y="{bottom - height / 2}" fill="gray">nothing was measured</text>'
    x_max = max(x for x, _ in points) or 1.0
    y_max = max(y for _, y in points) or 1.0
    line = " ".join(f"{_LEFT + width * x / x_max:.1f},{bottom - height * y / y_max:.1f}" for x, y in points)
    ordered, marks = sorted(values), ""
    for percent in (50, 90, 99) if ordered else ():
        value = percentile(ordered, percent)
        x, y = _LEFT + width * value / x_max, bottom - height * percent / 100
        marks += f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="firebrick"/>'
        anchor, shift = ("end", -6) if x > _LEFT + width / 2 else ("start", 6)
        place = f'x="{x + shift:.1f}" y="{y + 14:.1f}" text-anchor="{anchor}"'
        marks += f'<text {place} paint-order="stroke" stroke="white" stroke-width="3">p{percent} {value:.3g} s</text>'
    return (
        f'{head}<path d="M{_LEFT} {_TOP}V{bottom}H{_LEFT + width}" fill="none" stroke="gray"/>'
        f'<text x="{_LEFT - 6}" y="{_TOP + 4}" text-anchor="end">{y_max:.3g}</text>'
        f'<text x="{_LEFT - 6}" y="{bottom}" text-anchor="end">0</text>'
        f'<text x="{_LEFT + width}" y="{bottom + 16}" text-anchor="end">{x_max:.3g} {escape(x_title)}</text>'
        f'<polyline points="{line}" fill="none" stroke="steelblue" stroke-width="1.5"/>{marks}'
    )
