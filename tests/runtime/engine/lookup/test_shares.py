"""Drafts are as long as they pay, for the sequences where they do."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from runtime.engine.lookup.shares import Offer, share_out

MEASURED = {1: 140, 2: 204, 3: 260, 4: 128, 5: 210, 6: 270, 7: 331, 8: 244, 12: 352, 16: 362, 24: 590, 32: 707}
"""Milliseconds of a 2B model in Q4_0 on two cores, by the tokens of a step."""


def measured(width: int) -> float | None:
    """Return the cost of a step on two cores."""
    return MEASURED.get(width)


def in_proportion(width: int) -> float:
    """Return the cost of a step where each token costs the same."""
    return 100.0 * width


def constant(_width: int) -> float:
    """Return the cost of a step where tokens cost nothing."""
    return 100.0


def grant(cost: Callable[[int], float | None], *offers: tuple[int, float], n: int = 0, room: int = 32) -> list[int]:
    """Return what is granted to offers of ``(n_tokens, probability)`` among ``n`` sequences."""
    return list(share_out([Offer(*offer) for offer in offers], n or len(offers), room, cost))


def test_a_likely_draft_fills_whole_groups() -> None:
    """One sequence drafts three tokens at even odds, and fifteen where nearly all are right."""
    assert grant(measured, (16, 0.5)) == [3]
    assert grant(measured, (16, 0.98)) == [15]
    assert grant(measured, (2, 0.98)) == [0], "three tokens would cost more than four"


def test_nothing_is_drafted_where_tokens_cost_as_much_as_steps() -> None:
    """Where the processor is busy, even a draft that is nearly always right gains nothing."""
    assert grant(in_proportion, (16, 0.97)) == [0]
    assert grant(in_proportion, (16, 0.97), (16, 0.5), n=8) == [0, 0]


def test_the_likelier_draft_is_the_longer_one() -> None:
    """Two sequences share the room by what is expected of each."""
    one, other = grant(constant, (16, 0.9), (16, 0.4))
    assert one > other > 0
    assert (one + other + 2) % 4 == 0


def test_the_room_is_kept() -> None:
    """No more tokens are granted than the batch has room for."""
    assert grant(constant, (16, 0.99), room=8) == [7]
    assert grant(constant, (16, 0.99), (16, 0.99), room=0) == [0, 0]


def test_a_neighbour_is_not_slowed_down_much() -> None:
    """A draft that would make the step half as long again is granted only where every sequence drafts."""

    def steep(width: int) -> float:
        return 100.0 if width <= 4 else 150.0

    assert grant(steep, (3, 0.99), (3, 0.99), n=2) == [3, 3]
    assert grant(steep, (6, 0.99), n=2) == [2]


def test_nothing_is_drafted_before_a_step_was_measured() -> None:
    """Without the cost of a plain step there is nothing to compare with."""
    assert grant(lambda _width: None, (16, 0.99)) == [0]


@given(
    offers=st.lists(st.tuples(st.integers(0, 16), st.floats(0.01, 0.99)), max_size=8),
    n_others=st.integers(0, 8),
    room=st.integers(0, 32),
    slope=st.floats(0, 200),
)
def test_grants_keep_every_limit(offers: list[tuple[int, float]], n_others: int, room: int, slope: float) -> None:
    """Whatever is offered, grants fit into offers and room, and fill groups."""
    n = len(offers) + n_others
    granted = grant(lambda width: 100.0 + slope * width, *offers, n=n, room=room)
    assert all(0 <= n_tokens <= most for n_tokens, (most, _) in zip(granted, offers, strict=True))
    assert sum(granted) <= room
    assert not sum(granted) or (n + sum(granted)) % 4 == 0
