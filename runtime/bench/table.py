"""A report as lines for a terminal. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from runtime.bench.figures import LoadFigures, LoadReport, Percentiles

MAX_ADAPTERS: Final = 16
"""Adapters that have a line; the file of --json has all."""
MAX_ERRORS: Final = 5
_MAX_NAME: Final = 24
_HEADS: Final = ("p50", "p90", "p99", "mean", "max")


def render(report: LoadReport) -> str:
    """The whole load, its errors, and a line for each adapter if there is more than one."""
    all_ = report.together
    lines = [f"{'':<22}" + "".join(f"{head:>10}" for head in _HEADS)]
    lines += [
        _row("time to first token", all_.first_token_s, _time),
        _row("gap between tokens", all_.gap_s, _time),
        _row("end to end", all_.total_s, _time),
        _row("tokens/s of an answer", all_.speed, _rate),
        "",
        f"{all_.n_requests} requests in {report.wall_s:.1f} s: {all_.n_answered} answered"
        f" ({report.requests_per_s:.2f} a second), {all_.n_failed} failed"
        + (f", {all_.n_cancelled} cancelled" if all_.n_cancelled else ""),
        f"{all_.n_prompt_tokens} prompt tokens ({report.prompt_tokens_per_s:.1f}/s), "
        f"{all_.n_tokens} answer tokens ({all_.tokens_per_s:.1f}/s)",
    ]
    errors = list(report.errors.items())
    lines += [f"  {count} x {words}" for words, count in errors[:MAX_ERRORS]]
    if len(errors) > MAX_ERRORS:
        lines.append(f"  and {len(errors) - MAX_ERRORS} other errors")
    if len(report.by_adapter) > 1:
        lines += ["", *_adapters(report.by_adapter)]
    return "\n".join(lines)


def _adapters(by_name: dict[str, LoadFigures]) -> list[str]:
    shown = list(by_name.items())[:MAX_ADAPTERS]
    heads = ("requests", "failed", "first p50", "first p99", "gap p50", "gap p99", "tokens/s")
    lines = [f"{'adapter':<{_MAX_NAME}}" + "".join(f"{head:>10}" for head in heads)]
    for name, one in shown:
        first, gap = one.first_token_s, one.gap_s
        cells = (str(one.n_requests), str(one.n_failed), *(_time(v) for v in (first.p50, first.p99, gap.p50, gap.p99)))
        short = name if len(name) < _MAX_NAME else f"{name[: _MAX_NAME - 4]}..."
        lines.append(f"{short:<{_MAX_NAME}}" + "".join(f"{cell:>10}" for cell in (*cells, _rate(one.speed.p50))))
    if len(by_name) > len(shown):
        lines.append(f"and {len(by_name) - len(shown)} other adapters; --json FILE has all")
    return lines


def _row(title: str, values: Percentiles, show: Callable[[float], str]) -> str:
    if not values.n:
        return f"{title:<22}" + f"{'-':>10}" * len(_HEADS)
    return f"{title:<22}" + "".join(f"{show(getattr(values, head)):>10}" for head in _HEADS)


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"


def _rate(value: float) -> str:
    return f"{value:.1f}"
