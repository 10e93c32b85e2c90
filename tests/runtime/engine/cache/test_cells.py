"""A cell counts once for any number of holders, and is free when it has none."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from runtime.engine.cache.cells import Cells

N_CELLS = 12


class CellsMachine(RuleBasedStateMachine):
    """Compares the cells with a model that keeps a set of cells for each holder."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = Cells(N_CELLS)
        self.model: dict[int, list[object]] = {}

    def in_use(self) -> set[object]:
        """Return the cells that some holder of the model has."""
        return {cell for held in self.model.values() for cell in held}

    @rule(holder=st.integers(0, 3), n=st.integers(0, 5))
    def grow(self, holder: int, n: int) -> None:
        """A holder takes cells if that many are free."""
        if n > N_CELLS - len(self.in_use()):
            with pytest.raises(ValueError, match="free"):
                self.cells.grow(holder, n)
            return
        self.cells.grow(holder, n)
        self.model.setdefault(holder, []).extend(object() for _ in range(n))

    @rule(source=st.integers(0, 3), heir=st.integers(0, 3), n=st.integers(0, 5))
    def share(self, source: int, heir: int, n: int) -> None:
        """A new holder also holds the first cells of another one."""
        if n > len(self.model.get(source, ())) or self.model.get(heir):
            with pytest.raises(ValueError, match="cannot share"):
                self.cells.share(source, heir, n)
            return
        self.cells.share(source, heir, n)
        self.model[heir] = self.model.get(source, [])[:n]

    @precondition(lambda self: self.model)
    @rule(holder=st.integers(0, 3))
    def release(self, holder: int) -> None:
        """A holder releases all its cells."""
        self.cells.release(holder)
        self.model.pop(holder, None)

    @invariant()
    def counts_agree(self) -> None:
        """Used cells, each holder's cells and any two holders' cells together are counted right."""
        assert self.cells.n_used == len(self.in_use())
        for holder in range(4):
            assert self.cells.held_by(holder) == len(self.model.get(holder, ()))
        both = {cell for holder in (0, 1) for cell in self.model.get(holder, ())}
        assert self.cells.held_by_all((0, 1)) == len(both)


TestCells = CellsMachine.TestCase
