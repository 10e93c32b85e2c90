"""Grouped batches: every blend with work gets its turn."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runtime.engine.adapters.turns import STEPS_PER_TURN, Turns
from tests.runtime.engine.values import blend

BLENDS = [blend(name) for name in "abcd"]


def test_one_blend_a_batch_and_a_turn_of_some_steps() -> None:
    """A turn lasts a fixed number of steps; then the turn of the next blend begins."""
    turns = Turns()
    chosen = [turns.choose(BLENDS[:2]) for _ in range(3 * STEPS_PER_TURN)]
    assert all(len(one) == 1 for one in chosen)
    assert chosen == [frozenset({one}) for one in (BLENDS[0], BLENDS[1], BLENDS[0]) for _ in range(STEPS_PER_TURN)]


def test_a_turn_ends_early_when_its_blend_has_nothing_to_do() -> None:
    """The next turn begins at once when the current blend has no tokens to run."""
    turns = Turns()
    turns.choose(BLENDS[:2])
    assert turns.choose(BLENDS[1:2]) == {BLENDS[1]}


def test_no_blends_no_choice() -> None:
    """An idle engine chooses no blend."""
    assert Turns().choose([]) == frozenset()


@given(st.lists(st.sets(st.sampled_from(BLENDS), min_size=1), min_size=1, max_size=200))
def test_a_blend_with_work_waits_a_bounded_time(steps: list[set[object]]) -> None:
    """A blend with work waits at most one turn of each other blend, whatever the others do."""
    turns = Turns()
    waited = dict.fromkeys(BLENDS, 0)
    for present in steps:
        (chosen,) = turns.choose([one for one in BLENDS if one in present])
        for one in BLENDS:
            waited[one] = 0 if one == chosen or one not in present else waited[one] + 1
        assert max(waited.values()) <= STEPS_PER_TURN * 2 * len(BLENDS)
