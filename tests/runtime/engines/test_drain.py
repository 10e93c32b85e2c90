"""When to ask again: numbers in, numbers out."""

from __future__ import annotations

from runtime.engines.drain import MAX_RETRY_S, MIN_RETRY_S, DrainRate


def test_the_time_is_that_of_the_requests_before() -> None:
    """Two ends a second, and twenty requests in flight: ten seconds."""
    rate = DrainRate()
    for number in range(40):
        rate.note_end(number / 2)
    assert rate.retry_after_s(20, 19.5) == 10


def test_without_a_measurement_it_is_a_second() -> None:
    """The estimate is one second until a request has ended."""
    rate = DrainRate()
    rate.note_end(0.0)
    assert rate.retry_after_s(50, 10.0) == MIN_RETRY_S


def test_a_fast_server_says_a_second_and_a_stuck_one_a_minute() -> None:
    """The answer stays within what clients wait for."""
    rate = DrainRate()
    for number in range(40):
        rate.note_end(number / 1000)
    assert rate.retry_after_s(5, 0.04) == MIN_RETRY_S
    assert rate.retry_after_s(72, 600.0) == MAX_RETRY_S
