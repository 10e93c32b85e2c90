"""Pinned adapters keep a lane, and leave it when they are unpinned."""

from __future__ import annotations

from runtime.engine.adapters.lanes import Lanes
from runtime.engine.adapters.pins import LanePins
from tests.runtime.engine.values import blend

A, B, C = (letter * 64 for letter in "abc")


def fill(lanes: Lanes) -> None:
    """Let every fill come to its end."""
    for one in lanes.take_fills():
        lanes.filled(one.lane_id)


def test_a_pinned_adapter_keeps_its_lane() -> None:
    """Other blends get the other lanes, however many ask."""
    lanes = Lanes(2)
    pins = LanePins(lanes)
    pins.pin(A)
    pins.take_lanes()
    fill(lanes)
    for letter in "bcb":
        lanes.enter(blend(letter))
        fill(lanes)
        assert blend("a") in lanes.resident
        lanes.leave(blend(letter))
    pins.unpin(A)
    for letter in "bc":
        lanes.enter(blend(letter))
    assert blend("a") not in lanes.resident


def test_a_pin_waits_for_an_idle_lane() -> None:
    """A lane in use is not taken from its sequences."""
    lanes = Lanes(1)
    pins = LanePins(lanes)
    lanes.enter(blend("b"))
    fill(lanes)
    pins.pin(A)
    pins.take_lanes()
    assert lanes.resident == {blend("b")}
    lanes.leave(blend("b"))
    pins.take_lanes()
    assert lanes.resident == {blend("a")}


def test_pinning_twice_is_pinning_once() -> None:
    """Pinning a pinned adapter and unpinning another one change nothing."""
    lanes = Lanes(1)
    pins = LanePins(lanes)
    for _ in range(2):
        pins.pin(A)
        pins.take_lanes()
    fill(lanes)
    for _ in range(2):
        pins.unpin(A)
    lanes.enter(blend("b"))
    assert lanes.resident == {blend("b")}


def test_a_pin_whose_weights_cannot_be_written_is_given_up() -> None:
    """The lane of a pin whose weights cannot be written can be emptied and given to another blend."""
    lanes = Lanes(1)
    pins = LanePins(lanes)
    pins.pin(A)
    pins.take_lanes()
    fill(lanes)
    pins.failed(blend("a"))
    lanes.forget(blend("a"))
    assert lanes.resident == frozenset()
