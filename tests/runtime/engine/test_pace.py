"""Prompt tokens for a step are counted by what tokens have cost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.engine.pace import Pace


def test_a_chunk_fills_what_decoding_leaves_of_the_budget() -> None:
    """100 ms of 250 are decoding's; at 2 ms a token 75 more fit."""
    pace = Pace(250)
    for _ in range(50):
        pace.observe(8, 0, 100)
        pace.observe(8, 50, 200)
    assert pace.n_prefill == pytest.approx(75, abs=2)


def test_a_prompt_goes_on_however_slow_decoding_is() -> None:
    """At least one token a step."""
    pace = Pace(250)
    for _ in range(50):
        pace.observe(8, 0, 400)
        pace.observe(8, 10, 500)
    assert pace.n_prefill == 1


def test_the_first_chunk_is_small() -> None:
    """Nothing is known yet."""
    assert 0 < Pace(250).n_prefill <= 64


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 512), st.floats(0, 1e5)), max_size=30))
def test_any_measurements_give_at_least_one_token(steps: list[tuple[int, int, float]]) -> None:
    """A clock that stands still or jumps breaks nothing."""
    pace = Pace(250)
    for n_decode, n_prefill, elapsed_ms in steps:
        pace.observe(n_decode, n_prefill, elapsed_ms)
    assert pace.n_prefill >= 1
