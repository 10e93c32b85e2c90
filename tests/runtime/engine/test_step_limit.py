"""How long a batch may take: numbers in, numbers out."""

from __future__ import annotations

from runtime.engine.step_limit import MAX_LIMIT_S, MIN_LIMIT_S, StepLimit

TINY, LARGE = 1_000_000, 8_500_000_000


def test_a_small_model_is_judged_in_seconds_from_the_first_batch() -> None:
    """The slowest machine computes a small model's first batch within the shortest limit."""
    assert StepLimit(TINY).limit_s(512) == MIN_LIMIT_S


def test_a_large_model_gets_minutes_until_it_was_measured() -> None:
    """The first prompt of a large model has the longest limit; a measurement shortens it."""
    limit = StepLimit(LARGE)
    assert limit.limit_s(512) >= MAX_LIMIT_S
    limit.observe(512, 51.2)
    assert 512 <= limit.limit_s(512) <= 1024
    limit.observe(1, 0.5)
    assert limit.limit_s(1) <= 12


def test_a_batch_may_take_ten_times_as_long_as_the_slowest() -> None:
    """The limit is ten times the slowest batch, rounded up to a doubling of the shortest limit."""
    limit = StepLimit(TINY)
    limit.observe(8, 2.0)
    assert limit.limit_s(8) == 24


def test_a_slow_batch_is_forgotten() -> None:
    """The limit is the shortest again 300 batches after one slow batch."""
    limit = StepLimit(TINY)
    limit.observe(8, 20.0)
    assert limit.limit_s(8) == 384
    for _ in range(300):
        limit.observe(8, 0.01)
    assert limit.limit_s(8) == MIN_LIMIT_S
