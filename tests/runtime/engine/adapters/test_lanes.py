"""Lanes are given fairly, never taken from a user, and filled once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from runtime.engine.adapters.lanes import BASE_LANE, Fill, Lanes
from runtime.generation import BASE, Blend
from runtime.messages import LaneStats
from tests.runtime.engine.values import blend

N_LANES = 3
BLENDS = [blend(name) for name in "abcdef"]
blends = st.sampled_from(BLENDS)


class LanesMachine(RuleBasedStateMachine):
    """Sequences come and go under six blends over three lanes; fills take their time."""

    def __init__(self) -> None:
        super().__init__()
        self.lanes = Lanes(N_LANES)
        self.users: dict[Blend, int] = {}
        self.pending: list[Fill] = []
        self.held: dict[int, Blend] = {BASE_LANE: BASE}

    @rule(wanted=blends)
    def enter(self, wanted: Blend) -> None:
        """A sequence enters if there is a lane for it."""
        if self.lanes.has_place(wanted):
            self.lanes.enter(wanted)
            self.users[wanted] = self.users.get(wanted, 0) + 1
            self.pending += self.lanes.take_fills()

    @rule(waiting=st.lists(blends, max_size=5))
    def expect(self, waiting: list[Blend]) -> None:
        """Sequences wait; a blend that is in use or waited for keeps its lane."""
        resident = {one for one in self.lanes.resident if self.users.get(one) or one in waiting}
        self.lanes.expect(waiting)
        self.pending += self.lanes.take_fills()
        assert resident <= self.lanes.resident

    @rule(gone=blends)
    def leave(self, gone: Blend) -> None:
        """A sequence ends."""
        if self.users.get(gone):
            self.users[gone] -= 1
            self.lanes.leave(gone)

    @rule()
    def fill(self) -> None:
        """The oldest fill is completed."""
        if self.pending:
            done = self.pending.pop(0)
            self.held[done.lane_id] = done.blend
            self.lanes.filled(done.lane_id)

    @invariant()
    def users_have_lanes_of_their_own(self) -> None:
        """No two blends in use share a lane, and none of them has lane 0."""
        lanes = [self.lanes.lane_of(one) for one, n in self.users.items() if n]
        assert len(set(lanes)) == len(lanes)
        assert BASE_LANE not in lanes

    @invariant()
    def what_may_run_is_in_its_lane(self) -> None:
        """The lane of a chosen blend holds that blend's weights."""
        for one in self.lanes.choose(one for one, n in self.users.items() if n):
            assert self.held[self.lanes.lane_of(one)] == one

    @invariant()
    def no_lane_is_filled_twice_at_once(self) -> None:
        """A lane has at most one fill that is not completed."""
        lanes = [fill.lane_id for fill in self.pending]
        assert len(set(lanes)) == len(lanes)


TestLanes = LanesMachine.TestCase


def filled(*entered: Blend) -> Lanes:
    """Return lanes that these blends have entered, all of them filled."""
    lanes = Lanes(N_LANES)
    for one in entered:
        lanes.enter(one)
    for fill in lanes.take_fills():
        lanes.filled(fill.lane_id)
    return lanes


def test_the_base_needs_no_lane() -> None:
    """The base model runs in lane 0 beside full lanes, and nothing is filled for it."""
    lanes = filled(*BLENDS[:N_LANES])
    assert lanes.has_place(BASE)
    lanes.enter(BASE)
    assert lanes.take_fills() == []
    assert lanes.lane_of(BASE) == BASE_LANE
    lanes.leave(BASE)


def test_full_lanes_have_places_for_their_own_blends_only() -> None:
    """When every lane is in use, a blend that has a lane may bring more sequences, and another blend waits."""
    lanes = filled(*BLENDS[:N_LANES])
    assert lanes.has_place(BLENDS[0])
    assert not lanes.has_place(BLENDS[3])


def test_the_lane_idle_longest_goes_first() -> None:
    """A new blend gets the lane idle longest, and a blend that comes back to its lane is not filled again."""
    lanes = filled(*BLENDS[:N_LANES])
    for one in (BLENDS[1], BLENDS[0], BLENDS[2]):
        lanes.leave(one)
    lanes.enter(BLENDS[1])
    assert lanes.take_fills() == []
    lanes.enter(BLENDS[3])
    (fill,) = lanes.take_fills()
    assert fill == Fill(fill.lane_id, BLENDS[3])
    assert lanes.resident == {BLENDS[1], BLENDS[2], BLENDS[3]}


def test_equal_adapters_of_other_scales_have_lanes_of_their_own() -> None:
    """The same adapter with another scale needs a lane of its own."""
    lanes = filled(blend("a"), blend("a", scale=0.5))
    assert lanes.lane_of(blend("a")) != lanes.lane_of(blend("a", scale=0.5))


def test_a_lane_in_use_or_being_filled_is_not_forgotten() -> None:
    """Only an idle lane can be forgotten; one that is being filled keeps its blend."""
    lanes = Lanes(N_LANES)
    lanes.enter(BLENDS[0])
    lanes.leave(BLENDS[0])
    lanes.forget(BLENDS[0])
    assert BLENDS[0] in lanes.resident
    (fill,) = lanes.take_fills()
    lanes.filled(fill.lane_id)
    lanes.forget(BLENDS[0])
    assert lanes.resident == frozenset()


@given(st.lists(blends, max_size=20))
def test_blends_that_wait_for_their_weights_are_not_chosen(entered: list[Blend]) -> None:
    """A blend is not chosen for a batch before its lane is filled."""
    lanes = Lanes(N_LANES)
    inside = []
    for one in entered:
        if lanes.has_place(one):
            lanes.enter(one)
            inside.append(one)
    assert lanes.choose([*inside, BASE]) == {BASE}


def test_stats_name_every_lane_once() -> None:
    """A lane is empty, filling, used or idle, never two of them, and each fill is counted."""
    lanes, resident = Lanes(3), ("a" * 64,)
    assert lanes.stats == LaneStats(n_empty=3)
    lanes.enter(blend("a"))
    (fill,) = lanes.take_fills()
    assert lanes.stats == LaneStats(n_empty=2, n_filling=1, n_fills=1, resident=resident)
    lanes.filled(fill.lane_id)
    assert lanes.stats == LaneStats(n_empty=2, n_used=1, n_fills=1, resident=resident)
    lanes.leave(blend("a"))
    assert lanes.stats == LaneStats(n_empty=2, n_idle=1, n_fills=1, resident=resident)
    lanes.enter(blend("a"))
    assert lanes.stats == LaneStats(n_empty=2, n_used=1, n_fills=1, resident=resident)


def test_idle_lanes_are_filled_for_requests_that_wait() -> None:
    """Waiting blends get the lanes idle longest, in their order; no request loses the lane it waits for."""
    lanes = filled(*BLENDS[:N_LANES])
    for one in BLENDS[:N_LANES]:
        lanes.leave(one)
    lanes.expect([BLENDS[0], BASE, BLENDS[3], BLENDS[3], BLENDS[4], BLENDS[5]])
    assert [fill.blend for fill in lanes.take_fills()] == [BLENDS[3], BLENDS[4]]
    assert lanes.resident == {BLENDS[0], BLENDS[3], BLENDS[4]}


def test_a_lane_filled_ahead_is_not_given_away_before_older_ones() -> None:
    """A lane that was filled ahead counts as used at that moment."""
    lanes = filled(*BLENDS[:2])
    for one in BLENDS[:2]:
        lanes.leave(one)
    lanes.expect([BLENDS[2]])
    (fill,) = lanes.take_fills()
    lanes.filled(fill.lane_id)
    lanes.enter(BLENDS[3])
    assert lanes.resident == {BLENDS[1], BLENDS[2], BLENDS[3]}


def test_lanes_in_use_are_not_filled_ahead() -> None:
    """A lane in use is never filled for a request that waits."""
    lanes = filled(*BLENDS[:N_LANES])
    lanes.expect([BLENDS[3]])
    assert lanes.take_fills() == []
