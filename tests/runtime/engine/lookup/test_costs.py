"""What a step costs is what it was seen to cost; what was not seen is tried."""

from __future__ import annotations

import pytest

from runtime.engine.lookup.costs import StepCosts


def costs_of(**seen: float) -> StepCosts:
    """Return costs after four steps of each width, as ``w4=30``."""
    costs = StepCosts()
    for name, elapsed_ms in seen.items():
        for _ in range(4):
            costs.observe(int(name[1:]), elapsed_ms)
    return costs


def test_nothing_is_known_at_first() -> None:
    """Without a measurement as narrow there is no cost."""
    assert StepCosts().cost(4) is None
    assert costs_of(w4=30).cost(3) is None


def test_a_width_that_was_not_seen_costs_little_more_than_a_narrower_one() -> None:
    """Three tokens more cost 9 percent more, and never more than a wider step that was measured."""
    assert costs_of(w1=100).cost(4) == pytest.approx(109)
    assert costs_of(w1=100, w8=105).cost(4) == 105
    assert costs_of(w1=100, w2=200).cost(4) == pytest.approx(212)


def test_a_slow_step_changes_little() -> None:
    """One step that took ten times as long raises the cost by an eighth; a steady change is followed."""
    costs = costs_of(w1=100)
    costs.observe(1, 1000)
    assert costs.cost(1) == pytest.approx(112.5)
    for _ in range(30):
        costs.observe(1, 50)
    assert costs.cost(1) == pytest.approx(50, rel=0.01)


def test_the_first_steps_of_a_width_do_not_decide() -> None:
    """Until a width was seen four times its best time counts, or what is assumed of it."""
    costs = costs_of(w1=100)
    for elapsed_ms in (900, 500, 700):
        costs.observe(4, elapsed_ms)
        assert costs.cost(4) == pytest.approx(109)
    costs.observe(4, 700)
    assert costs.cost(4) == 500


def test_old_measurements_are_forgotten() -> None:
    """A width that was not seen for 512 steps is taken for unknown again."""
    costs = costs_of(w1=100, w4=400)
    for _ in range(511):
        costs.observe(1, 100)
    assert costs.cost(4) == 400
    costs.observe(1, 100)
    assert costs.cost(4) == pytest.approx(109)
