"""Which sequences hold which cells of the key-value cache. Pure bookkeeping.

llama.cpp lets several sequences hold one cell; it keeps the cell until the last of them releases it. The cell numbers
here are our own: their count matters, and not where llama.cpp puts the cells.
"""

from __future__ import annotations

from collections.abc import Iterable


class Cells:
    """Every cell, free or held. Holders are ids of llama.cpp sequences."""

    def __init__(self, n_cells: int) -> None:
        self.n_cells = n_cells
        self._free = list(reversed(range(n_cells)))
        self._n_holders = [0] * n_cells
        self._held: dict[int, list[int]] = {}

    @property
    def n_used(self) -> int:
        """Cells that have at least one holder."""
        return self.n_cells - len(self._free)

    def held_by(self, holder_id: int) -> int:
        """The number of cells of a holder, shared ones included."""
        return len(self._held.get(holder_id, ()))

    def held_by_all(self, holder_ids: Iterable[int]) -> int:
        """The number of cells that these holders have together, shared ones counted once."""
        return len(set().union(*(self._held.get(holder_id, ()) for holder_id in holder_ids)))

    def held_with_prefix(self, holder_ids: Iterable[int], source_id: int, n_cells: int) -> int:
        """The number of cells that these holders would have with the first ``n_cells`` of ``source_id`` added."""
        prefix = self._held.get(source_id, [])[:n_cells]
        return len(set(prefix).union(*(self._held.get(holder_id, ()) for holder_id in holder_ids)))

    def grow(self, holder_id: int, n_cells: int) -> None:
        """Give free cells to a holder.

        Raises:
            ValueError: fewer cells are free; nothing has changed.
        """
        if n_cells > len(self._free):
            raise ValueError(f"{n_cells} cells wanted, {len(self._free)} are free")
        taken = [self._free.pop() for _ in range(n_cells)]
        for cell in taken:
            self._n_holders[cell] = 1
        self._held.setdefault(holder_id, []).extend(taken)

    def share(self, source_id: int, target_id: int, n_cells: int) -> None:
        """Let a new holder share the first cells of another one.

        Raises:
            ValueError: the source holds fewer, or the target holds some already; nothing has changed.
        """
        if n_cells > self.held_by(source_id) or self.held_by(target_id):
            raise ValueError(f"{target_id} cannot share {n_cells} cells of {source_id}")
        shared = self._held[source_id][:n_cells] if n_cells else []
        for cell in shared:
            self._n_holders[cell] += 1
        self._held[target_id] = shared

    def release(self, holder_id: int) -> None:
        """Release all cells of a holder; a cell without another holder becomes free."""
        for cell in self._held.pop(holder_id, ()):
            self._n_holders[cell] -= 1
            if not self._n_holders[cell]:
                self._free.append(cell)
