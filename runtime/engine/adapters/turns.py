"""Grouped batches: one blend a batch, in fair turns. Pure policy."""

from __future__ import annotations

from collections.abc import Iterable

from runtime.generation import Blend

# A change of adapters makes llama.cpp reserve its graphs again, 13 to 24 ms of CPU (measured); eight decode steps of
# even a small model cost several times that, and a blend waits at most eight steps for each other blend.
STEPS_PER_TURN = 8


class Turns:
    """Round robin among the blends that have work, some steps at a time."""

    def __init__(self) -> None:
        self._current: Blend | None = None
        self._n_steps = 0
        self._last_turn: dict[Blend, int] = {}
        self._n_turns = 0

    def has_place(self, blend: Blend) -> bool:
        """Always True: every blend gets turns."""
        del blend
        return True

    def enter(self, blend: Blend) -> None:
        """Do nothing: a turn needs no place."""

    def leave(self, blend: Blend) -> None:
        """Do nothing: a turn needs no place."""

    def expect(self, blends: Iterable[Blend]) -> None:
        """Do nothing: a turn needs no preparation."""

    def choose(self, blends: Iterable[Blend]) -> frozenset[Blend]:
        """The current blend while its turn lasts, then the blend that has waited longest."""
        candidates = list(blends)
        if not candidates:
            return frozenset()
        if self._current not in candidates or self._n_steps >= STEPS_PER_TURN:
            self._current = min(candidates, key=lambda blend: self._last_turn.get(blend, -1))
            self._n_steps = 0
            self._n_turns += 1
        self._last_turn = {blend: turn for blend, turn in self._last_turn.items() if blend in candidates}
        self._last_turn[self._current] = self._n_turns
        self._n_steps += 1
        return frozenset({self._current})
