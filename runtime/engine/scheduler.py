"""What the next batch holds. Pure policy on integers: no model, no clock, no loop.

Requests wait in order. A request is admitted when an id, a place for its blend and all the cells it can ever need are
free, so an admitted request never fails for want of cells. A batch takes one token of every sequence in decode, then
prompt tokens as far as the step's budget goes: half of them for the oldest prompt, the rest for the prompts nearest to
their first token.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from runtime.engine.cache.prefixes import Coming, Prefixes
from runtime.engine.sequence import Sequence, State
from runtime.generation import Blend

# The number of times that later requests may overtake one that waits for a place for its blend.
MAX_OVERTAKES = 32
# A prompt that comes when an answer has fewer tokens than this came together with it.
_MIN_EARLIER = 4


class Places(Protocol):
    """Which blends may run, and which may share a batch: one policy for mixed batches, one for grouped ones."""

    def has_place(self, blend: Blend) -> bool:
        """Whether one more sequence under ``blend`` may run now."""

    def enter(self, blend: Blend) -> None:
        """Take the place of one more sequence under ``blend``."""

    def leave(self, blend: Blend) -> None:
        """Give up the place of one sequence under ``blend``."""

    def expect(self, blends: Iterable[Blend]) -> None:
        """Prepare for the blends of waiting requests, the next request's first, without taking a place in use."""

    def choose(self, blends: Iterable[Blend]) -> frozenset[Blend]:
        """The blends that may share the next batch.

        Args:
            blends: those that some sequence's next token runs under, oldest sequence first.
        """


@dataclass(frozen=True, slots=True)
class BatchPart:
    """A sequence's part of a batch: its next ``n_tokens`` pending tokens, and what may follow them."""

    sequence: Sequence
    n_tokens: int
    draft: tuple[int, ...] = ()
    """Tokens that are computed in case they are chosen next."""

    @property
    def width(self) -> int:
        """Its tokens of the batch, drafted ones included."""
        return self.n_tokens + len(self.draft)

    @property
    def completes(self) -> bool:
        """Whether no token is pending after it, so that the next token can be chosen."""
        return self.n_tokens == self.sequence.n_pending


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """The capacities of an engine."""

    n_ctx: int
    """Tokens of one sequence, prompt and answer together."""
    n_kv_cells: int
    """Tokens of all sequences and kept prefixes together."""
    n_parallel: int
    """Sequences that run at once."""
    n_batch: int
    """Tokens of one batch."""
    step_budget_ms: float
    """The longest that a step should take while sequences are in decode, in milliseconds."""
    n_scored: int = 32
    """The most tokens of one batch, beside one for each sequence, whose logits are computed."""
    n_draft_max: int = 0
    """The most tokens that one sequence drafts in a step."""


class Scheduler:
    """Owns every sequence from submission to its end."""

    def __init__(self, limits: EngineLimits, places: Places, prefixes: Prefixes) -> None:
        self._limits = limits
        self._places = places
        self._prefixes = prefixes
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._free_ids = list(reversed(range(limits.n_parallel)))
        self._n_overtakes = 0
        self._awaited: dict[Sequence, Coming] = {}
        self._earlier: dict[Sequence, list[Sequence]] = {}
        """For each sequence in prefill those that were answering when it was admitted."""

    @property
    def waiting(self) -> tuple[Sequence, ...]:
        """The sequences that are not admitted yet, in order."""
        return tuple(self._waiting)

    @property
    def running(self) -> tuple[Sequence, ...]:
        """The admitted sequences, oldest first."""
        return tuple(self._running)

    def add(self, sequence: Sequence) -> None:
        """Add a sequence to the end of the queue."""
        self._waiting.append(sequence)

    def end(self, sequence: Sequence, state: State) -> None:
        """End a sequence and free its id, place and cells at once."""
        sequence.move(state)
        self._awaited.pop(sequence, None)
        self._earlier.pop(sequence, None)
        if sequence in self._running:
            self._running.remove(sequence)
            self._free_ids.append(sequence.sequence_id)
            self._places.leave(sequence.blend)
            self._prefixes.end(sequence.sequence_id, is_kept=state is not State.FAILED)
        else:
            self._waiting.remove(sequence)

    def admit(self) -> list[Sequence]:
        """Start the waiting sequences whose turn it is, and return them."""
        admitted = []
        has_passed = False
        for sequence in tuple(self._waiting):
            if not self._free_ids:
                break
            if not self._places.has_place(sequence.blend):
                if self._n_overtakes >= MAX_OVERTAKES:
                    break
                has_passed = True
            elif sequence.is_scored or not self._is_prefix_coming(sequence):
                if not self._prefixes.has_room(
                    sequence.coverage, sequence.tokens, sequence.n_cells_max, is_fresh=sequence.is_scored
                ):
                    break
                self._n_overtakes = self._n_overtakes + 1 if has_passed else 0
                self._start(sequence)
                admitted.append(sequence)
        if self._waiting:
            nearest = itertools.islice(self._waiting, self._limits.n_parallel)
            self._places.expect(sequence.blend for sequence in nearest)
        return admitted

    def _is_prefix_coming(self, sequence: Sequence) -> bool:
        """Whether a running sequence is computing a prefix that this sequence should wait for."""
        coming = self._awaited.get(sequence)
        if coming is None or not self._prefixes.is_coming(coming):
            coming = self._prefixes.find_coming(sequence.coverage, sequence.tokens)
        if coming is None:
            self._awaited.pop(sequence, None)
            return False
        self._awaited[sequence] = coming
        return True

    def _start(self, sequence: Sequence) -> None:
        sequence.move(State.PREFILL)
        self._earlier[sequence] = [one for one in self._running if one.n_answer >= _MIN_EARLIER]
        self._waiting.remove(sequence)
        self._awaited.pop(sequence, None)
        self._places.enter(sequence.blend)
        sequence.sequence_id = self._free_ids.pop()
        sequence.n_cached = sequence.n_computed = self._prefixes.begin(
            sequence.sequence_id,
            sequence.coverage,
            sequence.tokens,
            sequence.n_cells_max,
            is_fresh=sequence.is_scored,
        )
        self._running.append(sequence)

    @property
    def n_decode(self) -> int:
        """The number of running sequences in decode."""
        return sum(sequence.state is State.DECODE for sequence in self._running)

    @property
    def n_prefill_sequences(self) -> int:
        """The number of running sequences in prefill."""
        return len(self._running) - self.n_decode

    @property
    def n_earlier(self) -> int:
        """The number of sequences in decode that were answering when the oldest one in prefill was admitted."""
        oldest = next((sequence for sequence in self._running if sequence.state is State.PREFILL), None)
        earlier = self._earlier[oldest] if oldest else []
        return sum(sequence.state is State.DECODE for sequence in earlier)

    def schedule(self, n_prefill: int) -> list[BatchPart]:
        """The next batch.

        Args:
            n_prefill: prompt tokens that the step may take while sequences are in decode.

        Returns:
            One part for each sequence of the batch; empty if no sequence can run.
        """
        chosen = self._places.choose(dict.fromkeys(sequence.next_blend for sequence in self._running))
        runnable = {one: n_tokens for one in self._running if (n_tokens := one.n_runnable(chosen))}
        decodes = [sequence for sequence in runnable if sequence.state is State.DECODE]
        prefills = {one: n_tokens for one, n_tokens in runnable.items() if one.state is State.PREFILL}
        n_batch = self._limits.n_batch
        if not self.n_decode:
            n_prefill = n_batch
        parts = [BatchPart(sequence, 1) for sequence in decodes]
        prompts = _share_out(prefills, min(n_prefill, n_batch - len(decodes)))
        return parts + _cap_scored(prompts, self._limits.n_scored)

    def computed(self, sequence: Sequence, n_tokens: int) -> None:
        """Note that a sequence's next ``n_tokens`` went through the model in the last batch."""
        sequence.n_computed += n_tokens
        self._prefixes.grow(sequence.sequence_id, n_tokens)


def _share_out(prefills: Mapping[Sequence, int], n_tokens: int) -> list[BatchPart]:
    """Give ``n_tokens`` to prompts: half to the oldest, the rest to those nearest to their first token.

    Args:
        prefills: how many tokens each prompt can take now, oldest first.
        n_tokens: how many there are to give.
    """
    if not prefills or n_tokens <= 0:
        return []
    oldest = next(iter(prefills))
    granted = {oldest: min(prefills[oldest], (n_tokens + 1) // 2)}
    n_left = n_tokens - granted[oldest]
    for sequence in sorted(prefills, key=lambda one: one.n_pending):
        n_granted = min(prefills[sequence] - granted.get(sequence, 0), n_left)
        granted[sequence] = granted.get(sequence, 0) + n_granted
        n_left -= n_granted
    return [BatchPart(sequence, granted[sequence]) for sequence in prefills if granted[sequence]]


def _cap_scored(parts: list[BatchPart], n_scored: int) -> list[BatchPart]:
    """Cut the parts that want a logprob for each of their tokens to ``n_scored`` tokens together, oldest first."""
    capped = []
    for part in parts:
        if part.sequence.is_scored:
            part = BatchPart(part.sequence, min(part.n_tokens, n_scored))  # noqa: PLW2901
            n_scored -= part.n_tokens
        if part.n_tokens:
            capped.append(part)
    return capped
