"""Adapters while the lanes are being proven: grouped until then, mixed from then on, without a pause for either.

Both ways know every adapter from the start, by the stricter rules of lanes, so that a change refuses nothing that was
accepted before.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from runtime.engine.adapters.grouped import GroupedAdapters
from runtime.engine.adapters.mixed import MixedAdapters
from runtime.engine.scheduler import Places
from runtime.engine.start.proof import Outcome, Proof
from runtime.errors import GemlaneError
from runtime.generation import Blend
from runtime.llama.context import Chunk
from runtime.llama.lanes.context import LanedContext
from runtime.messages import LANES_PROVING, LaneStats

_LOG = logging.getLogger("gemlane.engine")


class ProvisionalPlaces:
    """Who may share a batch: by the rules for groups at first, then by the lanes."""

    def __init__(self, first: Places, later: Places, n_lanes: int) -> None:
        self._current, self._later = first, later
        self._n_lanes = n_lanes
        self._users: Counter[Blend] = Counter()
        self._is_changed = False

    def has_place(self, blend: Blend) -> bool:
        """Whether one more sequence may run. At first no more blends run than there are lanes: each will find one."""
        is_known = blend.is_base or blend in self._users or len(self._users) < self._n_lanes
        return (self._is_changed or is_known) and self._current.has_place(blend)

    def enter(self, blend: Blend) -> None:
        """Take the place of one more sequence."""
        if not self._is_changed and not blend.is_base:
            self._users[blend] += 1
        self._current.enter(blend)

    def leave(self, blend: Blend) -> None:
        """Give up the place of one sequence."""
        if not self._is_changed and not blend.is_base:
            self._users[blend] -= 1
            self._users = +self._users
        self._current.leave(blend)

    def expect(self, blends: Iterable[Blend]) -> None:
        """Prepare for the blends of waiting requests, as far as the present rules do."""
        self._current.expect(blends)

    def choose(self, blends: Iterable[Blend]) -> frozenset[Blend]:
        """The blends that may share the next batch."""
        return self._current.choose(blends)

    def change(self) -> None:
        """Let all running sequences move into lanes."""
        self._is_changed = True
        self._current = self._later
        for blend in self._users.elements():
            self._later.enter(blend)
        self._users.clear()


class ProvisionalAdapters:
    """Grouped adapters and mixed ones over one context, and the proof that decides between them."""

    def __init__(
        self,
        grouped: GroupedAdapters,
        mixed: MixedAdapters,
        laned: LanedContext,
        proof: Proof,
        on_settled: Callable[[str, str], None],
    ) -> None:
        """Begin with groups.

        Args:
            grouped: over the context of ``laned``, which it leaves to ``mixed``.
            mixed: in the lanes of ``laned``.
            laned: runs llama.cpp's own adapters for now.
            proof: begins with the first adapter.
            on_settled: called with mode and reason when they change, on the engine's thread.
        """
        self._grouped, self._mixed, self._laned = grouped, mixed, laned
        self._proof = proof
        self._on_settled = on_settled
        self._current: GroupedAdapters | MixedAdapters = grouped
        self._is_settled = False
        self.places = ProvisionalPlaces(grouped.places, mixed.places, mixed.n_lanes)

    @property
    def mode(self) -> str:
        """``mixed`` or ``grouped``."""
        return self._current.mode

    @property
    def is_preparing(self) -> bool:
        """Whether a lane is being filled."""
        return self._current.is_preparing

    @property
    def lane_stats(self) -> LaneStats:
        """The lanes by state; all zero as long as they are not used."""
        return self._current.lane_stats

    def add(self, digest: str, path: Path) -> None:
        """Take an adapter in, and begin with the proof.

        Raises:
            AdapterError: it cannot be used in lanes.
        """
        self._mixed.add(digest, path)
        if not self._is_settled or self._current is self._grouped:
            self._grouped.add(digest, path)
        if not self._is_settled and self._proof.start():
            self._on_settled(self.mode, LANES_PROVING)

    def check(self, blend: Blend) -> tuple[int, ...]:
        """The token sequence that invokes a blend.

        Raises:
            AdapterError: its adapters cannot be used together in a lane.
        """
        return self._mixed.check(blend)

    def prepare(self) -> list[tuple[Blend, GemlaneError]]:
        """Change over if the proof has ended, then get blends ready; those that cannot be, and why."""
        if not self._is_settled and self._proof.outcome is not None:
            self._settle(self._proof.outcome)
        return self._current.prepare()

    def _settle(self, outcome: Outcome) -> None:
        self._is_settled = True
        if outcome.verdict is None:
            reason = f"mixed batches are not possible here: {outcome.reason}"
            _LOG.warning("%s; staying with one adapter a batch", reason)
        else:
            reason = outcome.reason
            self._laned.use_lanes()
            self._current = self._mixed
            self.places.change()
            self._grouped.release()
            _LOG.info("adapters are batched mixed from now on: %s", reason)
        self._on_settled(self.mode, reason)

    def forget(self, blend: Blend) -> None:
        """Drop what was prepared for a blend that no sequence uses any more."""
        self._current.forget(blend)

    def pin(self, digest: str, *, is_pinned: bool) -> None:
        """Keep an adapter in its lane, or let the lane be given to others."""
        self._mixed.pin(digest, is_pinned=is_pinned)

    def remove(self, digest: str) -> None:
        """Let go of an adapter that no sequence uses."""
        self._mixed.remove(digest)
        if self._current is self._grouped:
            self._grouped.remove(digest)

    def decode(self, chunks: Sequence[tuple[Chunk, Blend]]) -> list[int]:
        """Run a batch; the row of each chunk's logits, or -1.

        Raises:
            DecodeError: llama.cpp refused or failed the batch.
        """
        return self._current.decode(chunks)

    def close(self) -> None:
        """End the proof; give the context and everything native back."""
        self._proof.stop()
        self._mixed.close()
        if self._current is self._grouped:
            self._grouped.release()
