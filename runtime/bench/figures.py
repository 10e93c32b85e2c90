"""From the moments of requests to percentiles and rates. Pure."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from runtime.bench.request import MeasuredRequest

_NUMBER: Final = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Percentiles of one quantity; all 0 where nothing was measured."""

    n: int
    p50: float
    p90: float
    p99: float
    mean: float
    max: float


@dataclass(frozen=True, slots=True)
class LoadFigures:
    """What some requests took. Seconds, and tokens a second."""

    n_requests: int
    n_answered: int
    n_failed: int
    n_cancelled: int
    n_prompt_tokens: int
    n_tokens: int
    """Tokens of all answers, also of those that broke off."""
    first_token_s: Percentiles
    """Time from the moment a request was due to its first text."""
    gap_s: Percentiles
    """Time between two pieces of text of one answer."""
    total_s: Percentiles
    """Time from the moment a request was due to the end of its answer."""
    speed: Percentiles
    """Tokens a second of each answer, after its first token."""
    tokens_per_s: float
    """Tokens a second of all answers together."""


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a whole load came to."""

    wall_s: float
    requests_per_s: float
    prompt_tokens_per_s: float
    together: LoadFigures
    by_adapter: dict[str, LoadFigures]
    errors: dict[str, int]
    """How often each error came."""


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The value below which ``percent`` of ``ordered`` lie; between two values, the line between them.

    Raises:
        ValueError: nothing was given.
    """
    if not ordered:
        raise ValueError("no values")
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def percentiles(values: Iterable[float]) -> Percentiles:
    """The percentiles of values in any order."""
    ordered = sorted(values)
    if not ordered:
        return Percentiles(0, 0.0, 0.0, 0.0, 0.0, 0.0)
    p50, p90, p99 = (percentile(ordered, percent) for percent in (50, 90, 99))
    return Percentiles(len(ordered), p50, p90, p99, math.fsum(ordered) / len(ordered), ordered[-1])


def figures(records: Sequence[MeasuredRequest], wall_s: float) -> LoadFigures:
    """The figures of some requests of a load that took ``wall_s``; times are those of whole answers alone."""
    whole = [record for record in records if record.is_answered]
    n_tokens = sum(record.n_tokens for record in records)
    return LoadFigures(
        len(records),
        len(whole),
        sum(bool(record.error) and not record.is_cancelled for record in records),
        sum(record.is_cancelled for record in records),
        sum(record.n_prompt for record in records),
        n_tokens,
        percentiles(record.first_s - record.due_s for record in whole if record.first_s is not None),
        percentiles(gap_s for record in whole for gap_s in record.gaps_s),
        percentiles(record.end_s - record.due_s for record in whole if record.end_s is not None),
        percentiles(_speeds(whole)),
        n_tokens / wall_s if wall_s else 0.0,
    )


def _speeds(records: Iterable[MeasuredRequest]) -> Iterable[float]:
    for record in records:
        if record.first_s is not None and record.n_tokens > 1 and record.last_s > record.first_s:
            yield (record.n_tokens - 1) / (record.last_s - record.first_s)


def report(records: Sequence[MeasuredRequest], wall_s: float) -> LoadReport:
    """The report of a load that took ``wall_s`` until its last request ended; adapters by their number of requests."""
    counts = Counter(record.adapter for record in records)
    failed = [record.error for record in records if record.error and not record.is_cancelled]
    together = figures(records, wall_s)
    return LoadReport(
        wall_s,
        together.n_answered / wall_s if wall_s else 0.0,
        together.n_prompt_tokens / wall_s if wall_s else 0.0,
        together,
        {
            name: figures([record for record in records if record.adapter == name], wall_s)
            for name, _ in counts.most_common()
        },
        count_errors(failed),
    )


def count_errors(errors: Iterable[str]) -> dict[str, int]:
    """How often each error came, the most frequent first; errors that differ in numbers alone count as the first."""
    alike: dict[str, list[str]] = {}
    for error in errors:
        status, _, words = error.partition(":")
        alike.setdefault(f"{status}:{_NUMBER.sub('0', words)}", []).append(error)
    return {group[0]: len(group) for group in sorted(alike.values(), key=len, reverse=True)}
