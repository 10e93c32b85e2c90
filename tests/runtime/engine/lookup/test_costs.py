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


def test_a_width_that_was_not_seen_costs_half_of_its_groups() -> None:
    """Each group of four beyond a narrower width costs half as much again, and no width more than a wider one."""
    assert costs_of(w1=100).cost(4) == 100
    assert costs_of(w1=100, w4=120).cost(8) == pytest.approx(180)
    assert costs_of(w1=100, w4=120).cost(12) == pytest.approx(240)
    assert costs_of(w4=120, w8=200).cost(12) == pytest.approx(250)
    assert costs_of(w1=100, w16=105).cost(8) == 105


def test_a_slow_step_changes_little() -> None:
    """One step that took ten times as long raises the cost by an eighth; a steady change is followed."""
    costs = costs_of(w1=100)
    costs.observe(1, 1000)
    assert costs.cost(1) == pytest.approx(112.5)
    for _ in range(30):
        costs.observe(1, 50)
    assert costs.cost(1) == pytest.approx(50, rel=0.01)


def test_the_first_step_of_a_width_does_not_decide() -> None:
    """A width counts as assumed until it was seen twice, and then with its best time."""
    costs = costs_of(w1=100)
    costs.observe(8, 900)
    assert costs.cost(8) == pytest.approx(150)
    costs.observe(8, 500)
    assert costs.cost(8) == 500
    costs = costs_of(w1=100)
    costs.observe(8, 120)
    assert costs.cost(8) == 120


def test_old_measurements_are_forgotten() -> None:
    """A width that was not seen for 512 steps is taken for unknown again."""
    costs = costs_of(w1=100, w4=400)
    for _ in range(511):
        costs.observe(1, 100)
    assert costs.cost(4) == 400
    costs.observe(1, 100)
    assert costs.cost(4) == 100
