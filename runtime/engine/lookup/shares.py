"""How many tokens each sequence of a batch drafts: as many as make the most of the step. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from runtime.engine.pace import GROUP

# Less gain than this is within the noise of what steps cost.
_MIN_GAIN = 1.05
# The most that drafts may lengthen a step for a sequence that has none.
_MAX_SLOWDOWN = 1.25


@dataclass(frozen=True, slots=True)
class Offer:
    """What one sequence can draft."""

    n_tokens: int
    """The most tokens that it can draft."""
    probability: float
    """The probability that a token is accepted if those before it are."""


def share_out(
    offers: Sequence[Offer], n_sequences: int, room: int, cost: Callable[[int], float | None]
) -> tuple[int, ...]:
    """The number of tokens that each offer is granted.

    A step that costs more and brings more tokens is better if it brings more tokens a millisecond. Steps are only
    filled to whole groups, since a group costs little more than its first token.

    Args:
        offers: those of the sequences that can draft.
        n_sequences: all sequences of the batch; each brings one token without a draft.
        room: tokens that the batch has room for.
        cost: what a step of that many tokens costs, in milliseconds; None if it is not known.
    """
    likeliest_first = sorted(
        (
            (offer.probability**place, which)
            for which, offer in enumerate(offers)
            for place in range(1, offer.n_tokens + 1)
        ),
        key=lambda token: -token[0],
    )[: max(0, room)]
    plain_ms = cost(n_sequences)
    if plain_ms is None:
        return (0,) * len(offers)
    best, n_best = _MIN_GAIN * n_sequences / plain_ms, 0
    n_expected = float(n_sequences)
    drafting: set[int] = set()
    for n_tokens, (probability, which) in enumerate(likeliest_first, start=1):
        n_expected += probability
        drafting.add(which)
        if (n_sequences + n_tokens) % GROUP:
            continue
        step_ms = cost(n_sequences + n_tokens) or plain_ms
        is_fair = len(drafting) == n_sequences or step_ms <= _MAX_SLOWDOWN * plain_ms
        if is_fair and n_expected / step_ms > best:
            best, n_best = n_expected / step_ms, n_tokens
    granted = [which for _, which in likeliest_first[:n_best]]
    return tuple(granted.count(which) for which in range(len(offers)))
