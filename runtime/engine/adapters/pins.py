"""Adapters that keep a lane: each is one more user of its lane, so that the lane is never given to another blend."""

from __future__ import annotations

from runtime.engine.adapters.lanes import Lanes
from runtime.generation import Blend, BlendMember


class LanePins:
    """Takes a lane for each pinned adapter, alone and at scale 1, as soon as one is idle. Pure bookkeeping."""

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self._waiting: dict[str, Blend] = {}
        self._held: dict[str, Blend] = {}

    def pin(self, digest: str) -> None:
        """Let an adapter keep a lane from now on."""
        if digest not in self._held:
            self._waiting[digest] = Blend((BlendMember(digest),))

    def unpin(self, digest: str) -> None:
        """Let the adapter's lane be given to others again."""
        self._waiting.pop(digest, None)
        if blend := self._held.pop(digest, None):
            self._lanes.leave(blend)

    def take_lanes(self) -> None:
        """Take lanes for those that wait for one, as far as lanes are idle."""
        for digest, blend in list(self._waiting.items()):
            if self._lanes.has_place(blend):
                self._lanes.enter(blend)
                self._held[digest] = self._waiting.pop(digest)

    def failed(self, blend: Blend) -> None:
        """Let go of a lane whose weights could not be written."""
        for digest in [digest for digest, held in self._held.items() if held == blend]:
            self.unpin(digest)
