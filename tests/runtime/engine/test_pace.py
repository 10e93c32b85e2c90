"""A step is as wide as fits into the budget, on machines of any kind."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.engine.pace import BLOCK, GROUP, Pace

N_BATCH = 512
BUDGET_MS = 400


def settle(cost_ms: Callable[[int], float], n_decode: int, n_steps: int = 40) -> list[tuple[int, float]]:
    """Return prompt tokens and length of each step on a machine with the given cost of a batch."""
    pace = Pace(BUDGET_MS, N_BATCH)
    steps = []
    for _ in range(n_steps):
        n_prefill = min(pace.n_prefill(n_decode), N_BATCH - n_decode)
        elapsed_ms = cost_ms(n_decode + n_prefill)
        pace.observe(n_decode, n_prefill, elapsed_ms)
        steps.append((n_prefill, elapsed_ms))
    return steps


MACHINES: dict[str, Callable[[int], float]] = {
    # Computing is the cost: 2B on one core, measured 75 ms for one token and 19 for each of many.
    "small processor": lambda n_tokens: 60 + 19 * n_tokens,
    # Reading the weights is the cost: wide batches are hardly longer than narrow ones.
    "graphics card": lambda n_tokens: 12 + 0.05 * n_tokens,
    "fast processor": lambda n_tokens: 40 + 2 * n_tokens,
}


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("n_decode", [1, 4])
def test_steps_fill_the_budget(machine: str, n_decode: int) -> None:
    """After settling, no step takes more than 1.3 budgets, and none less than 0.7 unless the batch is full."""
    for n_prefill, elapsed_ms in settle(MACHINES[machine], n_decode)[10:]:
        assert elapsed_ms <= 1.3 * BUDGET_MS
        assert elapsed_ms >= 0.7 * BUDGET_MS or n_prefill + n_decode == N_BATCH


def test_few_answers_wait_for_many_prompts() -> None:
    """Where prompts outnumber earlier answers a step takes up to four budgets; one prompt never takes more than one."""
    pace = Pace(BUDGET_MS, N_BATCH)
    assert pace.n_prefill(4, 1) == pace.n_prefill(4, 4) == 28
    assert pace.n_prefill(2, 4) == 62
    assert pace.n_prefill(4, 4, n_earlier=2) == 60
    assert pace.n_prefill(1, 7) == pace.n_prefill(1, 100) == 127


def test_answers_that_came_with_the_prompts_wait_for_them() -> None:
    """Where no answer is earlier than the prompts, a step takes eight budgets."""
    assert Pace(BUDGET_MS, N_BATCH).n_prefill(3, 1, n_earlier=0) == 8 * 32 - 3


def test_a_step_fills_blocks_where_that_is_near() -> None:
    """A width one group beside a multiple of 16 becomes that multiple; any other stays a multiple of 4."""
    widths = [n_decode + Pace(BUDGET_MS, N_BATCH).n_prefill(n_decode) for n_decode in range(16, 27)]
    assert widths == [32, 32, 32, 40, 40, 48, 48, 48, 48, 48, 48]
    assert all(n_tokens % BLOCK in (0, BLOCK // 2) for n_tokens in widths)


def test_the_first_steps_stay_near_the_budget() -> None:
    """The first step is narrow enough for a slow machine, and the next ones are measured."""
    first, second, third, *_ = settle(MACHINES["small processor"], 4)
    assert first[1] < 3 * BUDGET_MS
    assert second[1] < 2 * BUDGET_MS
    assert third[1] < 1.5 * BUDGET_MS


def test_one_slow_step_is_soon_forgotten() -> None:
    """A few steps after one slow step the width is what it was before."""
    pace = Pace(BUDGET_MS, N_BATCH)
    cost_ms = MACHINES["small processor"]
    for _ in range(20):
        pace.observe(1, pace.n_prefill(1), cost_ms(1 + pace.n_prefill(1)))
    before = pace.n_prefill(1)
    pace.observe(1, before, 5000)
    for _ in range(5):
        pace.observe(1, pace.n_prefill(1), cost_ms(1 + pace.n_prefill(1)))
    assert pace.n_prefill(1) >= before - GROUP


def test_prompts_get_a_token_for_each_answer() -> None:
    """When eleven answers fill the budget, eleven prompt tokens or more are still computed beside them."""
    for n_prefill, elapsed_ms in settle(MACHINES["small processor"], 11)[10:]:
        assert 11 <= n_prefill <= 13
        assert elapsed_ms < 1.5 * BUDGET_MS


def test_a_prompt_goes_on_however_slow_decoding_is() -> None:
    """When eight answers alone take more than the budget, prompts still get eight tokens each step."""
    assert all(n_prefill == 8 for n_prefill, _ in settle(lambda n_tokens: 70 * n_tokens, 8)[10:])


def test_a_whole_batch_without_answers_teaches_too() -> None:
    """A batch of 512 tokens that took 9 s makes the first mixed step narrow."""
    pace = Pace(BUDGET_MS, N_BATCH)
    for _ in range(2):
        pace.observe(0, 512, 9000)
    assert pace.n_prefill(1) <= 23


def test_narrow_steps_teach_nothing() -> None:
    """A step that is narrow because few prompt tokens were left does not change the width, whatever each token cost."""
    pace = Pace(BUDGET_MS, N_BATCH)
    before = pace.n_prefill(1)
    for _ in range(10):
        pace.observe(1, 3, 20)
        pace.observe(0, 3, 135)
        pace.observe(8, 0, 100)
    assert pace.n_prefill(1) == before


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 512), st.floats(0, 1e5)), max_size=30), st.integers(0, 300))
def test_any_measurements_give_whole_groups(steps: list[tuple[int, int, float]], n_decode: int) -> None:
    """The width stays valid when the clock stands still or jumps."""
    pace = Pace(BUDGET_MS, N_BATCH)
    for step in steps:
        pace.observe(*step)
    n_prefill = pace.n_prefill(n_decode)
    assert n_prefill >= 1
    assert (n_decode + n_prefill) % GROUP == 0
