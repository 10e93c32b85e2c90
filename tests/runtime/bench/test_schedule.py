"""Arrivals, the choice of adapters, and prompts: from a seed."""

from __future__ import annotations

import dataclasses
import itertools
import random
import statistics
from collections import Counter

import pytest

from runtime.bench.schedule import LoadPlan, arrivals, choose, make_prompt, planned, power_law

PLAN = LoadPlan(("a", "b", "c"), 1.0, 20, None, 4, None, 1.0, 8, 16, 7)


def gaps(rate: float, cv: float, n: int) -> list[float]:
    """Seconds between neighbouring arrivals."""
    moments = itertools.islice(arrivals(rate, cv, random.Random(1)), n + 1)
    return [later - earlier for earlier, later in itertools.pairwise(moments)]


@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
def test_arrivals_have_the_rate_and_the_unevenness_asked_for(cv: float) -> None:
    """20,000 gaps have the mean 1 / rate and the standard deviation cv / rate, within a few percent."""
    found = gaps(4.0, cv, 20_000)
    assert statistics.fmean(found) == pytest.approx(0.25, rel=0.05)
    assert statistics.stdev(found) / statistics.fmean(found) == pytest.approx(cv, rel=0.08)


def test_a_cv_of_zero_is_a_clock() -> None:
    """Without unevenness requests come in equal steps, the first at once."""
    assert list(itertools.islice(arrivals(4.0, 0.0, random.Random(1)), 4)) == [0.0, 0.25, 0.5, 0.75]


def test_the_power_law_gives_shares() -> None:
    """Alpha 1 gives three adapters 6, 3 and 2 of 11 requests; alpha 0 gives each a third."""
    assert power_law(3, 1.0) == pytest.approx([6 / 11, 3 / 11, 2 / 11])
    assert power_law(3, 0.0) == pytest.approx([1 / 3] * 3)


def test_adapters_are_chosen_by_their_shares() -> None:
    """Each adapter gets its share of 20,000 choices, within a percent of all."""
    counts = Counter(itertools.islice(choose(["a", "b", "c"], 2.0, random.Random(1)), 20_000))
    for name, share in zip("abc", power_law(3, 2.0), strict=True):
        assert counts[name] / 20_000 == pytest.approx(share, abs=0.01)


def test_a_seed_repeats_the_load() -> None:
    """The same seed gives the same adapters, moments and prompts; another gives others."""
    open_plan = dataclasses.replace(PLAN, rate=3.0)
    assert list(planned(open_plan)) == list(planned(open_plan))
    assert list(planned(open_plan)) != list(planned(dataclasses.replace(open_plan, seed=8)))
    assert len({request.prompt for request in planned(open_plan)}) == 20
    assert [request.number for request in planned(open_plan)] == list(range(20))


def test_in_a_closed_loop_requests_are_due_at_once() -> None:
    """Without a rate every request is due at once; without a number of requests there is no end."""
    assert {request.due_s for request in planned(PLAN)} == {0.0}
    endless = planned(dataclasses.replace(PLAN, n_requests=None))
    assert len(list(itertools.islice(endless, 1000))) == 1000


def test_a_prompt_has_the_number_of_words() -> None:
    """A prompt has as many words as asked for."""
    assert len(make_prompt(12, random.Random(1)).split()) == 12
