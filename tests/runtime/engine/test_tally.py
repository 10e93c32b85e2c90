"""The engine's counts and waiting times, on a clock of the test's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from runtime.engine.scheduler import BatchPart
from runtime.engine.sequence import Sequence
from runtime.engine.tally import Tally
from runtime.generation import BASE, Blend, BlendMember, GenerationRequest, Prompt

PIRATE = Blend((BlendMember("a" * 64),))


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    """Time at 100 s."""
    return Clock()


@pytest.fixture
def tally(clock: Callable[[], float]) -> Tally:
    """Nothing counted yet."""
    return Tally(clock)


def sequence(blend: Blend = BASE, n_prompt: int = 5) -> Sequence:
    """A waiting sequence."""
    return Sequence(GenerationRequest("r", Prompt(()), blend=blend), list(range(n_prompt)), 100)


def test_waits_are_measured_between_the_stages(tally: Tally, clock: Clock) -> None:
    """The queue ends with the admission, the wait for a lane with the first batch, and later batches change nothing."""
    one = sequence()
    tally.submitted(one)
    clock.now_s += 2
    tally.admitted(one)
    clock.now_s += 0.5
    tally.scheduled([BatchPart(one, 3)])
    clock.now_s += 7
    tally.scheduled([BatchPart(one, 2)])
    assert tally.waits(one) == (2, 0.5)


def test_prompt_tokens_count_when_a_sequence_is_admitted(tally: Tally) -> None:
    """Prompt tokens count at the admission, and those found in the cache are counted apart."""
    one = sequence(n_prompt=9)
    one.n_cached = 4
    tally.submitted(one)
    assert tally.n_prompt_tokens == 0
    tally.admitted(one)
    assert (tally.n_prompt_tokens, tally.n_cached_tokens) == (9, 4)


def test_batches_are_counted_by_their_distinct_blends(tally: Tally) -> None:
    """Two sequences under one blend are one blend of a batch; the base model is a blend too."""
    base, first, second = sequence(), sequence(PIRATE), sequence(PIRATE)
    tally.decoded([BatchPart(first, 1), BatchPart(second, 1)])
    tally.decoded([BatchPart(base, 3), BatchPart(first, 1), BatchPart(second, 1)])
    tally.decoded([BatchPart(base, 1)])
    assert tally.n_steps_by_blends == ((1, 2), (2, 1))
    assert (tally.n_steps, tally.n_decoded_tokens) == (3, 8)


def test_ended_sequences_are_forgotten(tally: Tally) -> None:
    """A sequence that ended has no times any more, and ending one that was never submitted does nothing."""
    one = sequence()
    tally.submitted(one)
    tally.ended(one)
    tally.ended(sequence())
    with pytest.raises(KeyError):
        tally.waits(one)
