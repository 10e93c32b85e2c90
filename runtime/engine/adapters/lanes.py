"""Which blend sits in which lane. Pure policy on integers: it writes no weight.

A lane is empty, filling, or ready. A lane whose blend a sequence uses is never given to another blend; of the other
lanes, the one idle longest is given away first. The base model has lane 0, which is always ready.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from runtime.generation import BASE, Blend
from runtime.messages import LaneStats

BASE_LANE = 0


@dataclass(slots=True)
class _Lane:
    lane_id: int
    blend: Blend | None = None
    n_users: int = 0
    is_filling: bool = False
    idle_since: int = 0

    @property
    def is_idle(self) -> bool:
        return self.n_users == 0 and not self.is_filling


def _by_use(lane: _Lane) -> tuple[bool, int]:
    """The order in which idle lanes are given away: empty ones, then those idle longest."""
    return lane.blend is not None, lane.idle_since


@dataclass(frozen=True, slots=True)
class Fill:
    """The weights of ``blend`` have to be written into a lane."""

    lane_id: int
    blend: Blend


class Lanes:
    """Gives lanes to blends. A blend keeps its lane while sequences use it, and then until another blend needs it."""

    def __init__(self, n_lanes: int) -> None:
        self._lanes = {lane_id: _Lane(lane_id) for lane_id in range(1, n_lanes + 1)}
        self._by_blend: dict[Blend, _Lane] = {}
        self._to_fill: list[Fill] = []
        self._now = 0
        self._n_fills = 0

    def has_place(self, blend: Blend) -> bool:
        """Whether ``blend`` has a lane, or one could be given to it."""
        return blend.is_base or blend in self._by_blend or any(lane.is_idle for lane in self._lanes.values())

    def enter(self, blend: Blend) -> None:
        """Count one more sequence under ``blend``, and give it a lane if it has none."""
        if blend.is_base:
            return
        if blend not in self._by_blend:
            self._give(min((lane for lane in self._lanes.values() if lane.is_idle), key=_by_use), blend)
        self._by_blend[blend].n_users += 1

    def expect(self, blends: Iterable[Blend]) -> None:
        """Fill lanes ahead for requests that wait, as far as lanes are idle whose blends none of them needs.

        Args:
            blends: what the waiting requests need, the next request's first.
        """
        idle = sorted((lane for lane in self._lanes.values() if lane.is_idle), key=_by_use, reverse=True)
        if not idle:
            return
        wanted = dict.fromkeys(blends)
        idle = [lane for lane in idle if lane.blend not in wanted]
        for blend in wanted:
            if idle and not blend.is_base and blend not in self._by_blend:
                self._give(idle.pop(), blend)

    def _give(self, lane: _Lane, blend: Blend) -> None:
        if lane.blend is not None:
            del self._by_blend[lane.blend]
        self._now += 1
        lane.blend, lane.is_filling, lane.idle_since = blend, True, self._now
        self._by_blend[blend] = lane
        self._to_fill.append(Fill(lane.lane_id, blend))

    def leave(self, blend: Blend) -> None:
        """Count one sequence less under ``blend``; its weights stay until the lane is needed."""
        if blend.is_base:
            return
        lane = self._by_blend[blend]
        lane.n_users -= 1
        if not lane.n_users:
            self._now += 1
            lane.idle_since = self._now

    def choose(self, blends: Iterable[Blend]) -> frozenset[Blend]:
        """The base model and all blends whose weights are in place: any of them can share a batch."""
        del blends
        return frozenset({BASE, *(blend for blend, lane in self._by_blend.items() if not lane.is_filling)})

    def lane_of(self, blend: Blend) -> int:
        """The lane that tokens under ``blend`` use."""
        return BASE_LANE if blend.is_base else self._by_blend[blend].lane_id

    def take_fills(self) -> list[Fill]:
        """Return the fills that were decided since the last call."""
        fills, self._to_fill = self._to_fill, []
        self._n_fills += len(fills)
        return fills

    def filled(self, lane_id: int) -> None:
        """Note that the weights of the lane's blend are in place."""
        self._lanes[lane_id].is_filling = False

    def forget(self, blend: Blend) -> None:
        """Empty the lane of ``blend`` if it is idle: its fill failed, or one of its adapters was removed."""
        lane = self._by_blend.get(blend)
        if lane is not None and lane.is_idle:
            del self._by_blend[blend]
            lane.blend, lane.idle_since = None, 0

    @property
    def resident(self) -> frozenset[Blend]:
        """The blends that have a lane."""
        return frozenset(self._by_blend)

    @property
    def stats(self) -> LaneStats:
        """The lanes by state."""
        lanes = self._lanes.values()
        return LaneStats(
            n_empty=sum(lane.blend is None for lane in lanes),
            n_filling=sum(lane.is_filling for lane in lanes),
            n_used=sum(lane.n_users > 0 and not lane.is_filling for lane in lanes),
            n_idle=sum(lane.blend is not None and lane.is_idle for lane in lanes),
            n_fills=self._n_fills,
            resident=tuple(sorted({member.digest for blend in self._by_blend for member in blend.members})),
        )
