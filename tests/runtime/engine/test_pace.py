"""Prompt tokens for a step are counted by what tokens have cost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.engine.pace import GROUP, Pace


def pace_of(decode_ms: float, prompt_token_ms: float, *, n_decode: int = 8) -> Pace:
    """A budget of 250 ms, and steady measurements."""
    pace = Pace(250)
    for _ in range(50):
        pace.observe(n_decode, 0, decode_ms)
        pace.observe(n_decode, 48, decode_ms + 48 * prompt_token_ms)
    return pace


def test_a_chunk_fills_what_decoding_leaves_of_the_budget() -> None:
    """100 ms of 250 are decoding's; at 2 ms a token 75 more fit, 76 in whole groups."""
    assert pace_of(100, 2).n_prefill(8) == pytest.approx(76, abs=GROUP)


def test_prompts_get_as_long_as_decoding_however_slow_it_is() -> None:
    """Decoding alone takes longer than the budget: a prompt still gets on, by 400 ms a step."""
    assert pace_of(400, 25).n_prefill(8) == pytest.approx(16, abs=GROUP)


@pytest.mark.parametrize("n_decode", range(9))
def test_a_batch_is_whole_groups(n_decode: int) -> None:
    """Answers and prompt tokens together."""
    n_prefill = pace_of(100, 7).n_prefill(n_decode)
    assert (n_decode + n_prefill) % GROUP == 0
    assert n_prefill >= 1


def test_other_sizes_are_judged_by_the_nearest() -> None:
    """Eight are known; two fill another group and are taken to cost the same until they are measured."""
    pace = pace_of(150, 10, n_decode=8)
    before = pace.n_prefill(2)
    pace.observe(2, 0, 50)
    assert pace.n_prefill(2) > before


def test_the_first_chunk_is_small() -> None:
    """Nothing is known yet."""
    assert 0 < Pace(250).n_prefill(0) <= 64


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 512), st.floats(0, 1e5)), max_size=30), st.integers(0, 8))
def test_any_measurements_give_at_least_one_token(steps: list[tuple[int, int, float]], n_decode: int) -> None:
    """A clock that stands still or jumps breaks nothing."""
    pace = Pace(250)
    for step in steps:
        pace.observe(*step)
    assert pace.n_prefill(n_decode) >= 1
