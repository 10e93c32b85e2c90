"""The scheduler with everything but the model: a cache that remembers whose token lies where, and random answers."""

from __future__ import annotations

import random

from runtime.engine.adapters.lanes import Lanes
from runtime.engine.adapters.turns import Turns
from runtime.engine.cache.prefixes import Drop, Prefixes, Share
from runtime.engine.scheduler import BatchPart, EngineLimits, Places, Scheduler
from runtime.engine.sequence import Sequence, State
from runtime.generation import Blend

LIMITS = EngineLimits(n_ctx=40, n_kv_cells=100, n_parallel=4, n_batch=16, step_budget_ms=250)
N_LANES = 2
N_KEPT = 6

Cell = tuple[Blend, int]


class Simulation:
    """Steps the scheduler as the engine does, and checks every step against the scheduler's rules."""

    def __init__(self, places: Places, limits: EngineLimits = LIMITS) -> None:
        self.limits = limits
        self.places = places
        self.prefixes = Prefixes(limits.n_kv_cells, range(limits.n_parallel, limits.n_parallel + N_KEPT))
        self.scheduler = Scheduler(limits, places, self.prefixes)
        self.cache: dict[int, list[Cell]] = {}
        self.batches: list[list[BatchPart]] = []
        self.random = random.Random(0)

    def add(self, sequence: Sequence) -> Sequence:
        """Submit a sequence."""
        self.scheduler.add(sequence)
        return sequence

    def cancel(self, sequence: Sequence) -> None:
        """Cancel one that has not ended."""
        self.scheduler.end(sequence, State.CANCELLED)

    def step(self, n_prefill: int = 8) -> list[BatchPart]:
        """Admit, fill lanes, batch, compute, choose tokens."""
        self.scheduler.admit()
        if isinstance(self.places, Lanes):
            for fill in self.places.take_fills():
                self.places.filled(fill.lane_id)
        batch = self.scheduler.schedule(n_prefill)
        self._follow_cache()
        self._check(batch, n_prefill)
        for part in batch:
            self._compute(part)
        self._follow_cache()
        self.batches.append(batch)
        return batch

    def run(self, n_steps: int = 10_000) -> None:
        """Step until nothing is left.

        Raises:
            AssertionError: a sequence is still there after ``n_steps`` steps.
        """
        for _ in range(n_steps):
            if not (self.scheduler.running or self.scheduler.waiting):
                return
            assert self.step(), "no sequence runs although one waits"
        raise AssertionError("a sequence never ended")

    def _compute(self, part: BatchPart) -> None:
        sequence, is_complete = part.sequence, part.completes
        cells = self.cache.setdefault(sequence.sequence_id, [])
        new = sequence.tokens[sequence.n_computed : sequence.n_computed + part.n_tokens]
        coverage, start = sequence.coverage, sequence.n_computed
        cells += [(coverage.blend_at(start + n), token) for n, token in enumerate(new)]
        self.scheduler.computed(sequence, part.n_tokens)
        expected = [(coverage.blend_at(n), sequence.tokens[n]) for n in range(sequence.n_computed)]
        assert cells == expected, "the cache holds the sequence's own tokens, each computed under its blend"
        if not is_complete:
            return
        if sequence.state is State.PREFILL:
            if not sequence.n_answer_max:
                self.scheduler.end(sequence, State.FINISHED)
                return
            sequence.move(State.DECODE)
        sequence.tokens.append(self.random.randrange(3))
        if sequence.n_answer == sequence.n_answer_max:
            self.scheduler.end(sequence, State.FINISHED)

    def _follow_cache(self) -> None:
        for operation in self.prefixes.take_operations():
            match operation:
                case Share(source_id, target_id, n_tokens):
                    assert not self.cache.get(target_id), "a sequence id is empty before it is used"
                    self.cache[target_id] = self.cache[source_id][:n_tokens]
                case Drop(sequence_id):
                    self.cache.pop(sequence_id, None)

    def _check(self, batch: list[BatchPart], n_prefill: int) -> None:
        running = self.scheduler.running
        assert len(running) <= self.limits.n_parallel
        assert len({sequence.sequence_id for sequence in running}) == len(running)
        assert sum(part.n_tokens for part in batch) <= self.limits.n_batch
        assert all(0 < part.n_tokens <= part.sequence.n_pending for part in batch)
        assert len({part.sequence for part in batch}) == len(batch)
        decodes = [sequence for sequence in running if sequence.state is State.DECODE]
        if decodes:
            n_taken = sum(part.n_tokens for part in batch if part.sequence.state is State.PREFILL)
            assert n_taken <= n_prefill, "prompts keep to the budget while others stream"
        if isinstance(self.places, Turns):
            blends = {
                part.sequence.coverage.blend_at(part.sequence.n_computed + n)
                for part in batch
                for n in range(part.n_tokens)
            }
            assert len(blends) <= 1
        else:
            assert set(decodes) <= {part.sequence for part in batch}, "who answers goes on"
        promised = sum(sequence.n_cells_max - sequence.n_computed for sequence in running)
        held = self.prefixes.n_cells_running + self.prefixes.n_cells_kept
        assert held + promised <= self.limits.n_kv_cells, "every cell that may be needed is there"
