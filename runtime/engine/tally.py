"""What the engine has done since its start, and how long each request waited: the numbers behind the metrics."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from collections.abc import Sequence as Row
from dataclasses import dataclass

from runtime.engine.scheduler import BatchPart
from runtime.engine.sequence import Sequence


@dataclass(slots=True)
class _Times:
    """When a sequence reached each stage, in seconds of the clock."""

    submitted: float
    admitted: float | None = None
    scheduled: float | None = None


class Tally:
    """Counts tokens, batches and waiting times. Decides nothing."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._times: dict[Sequence, _Times] = {}
        self._steps_by_blends: Counter[int] = Counter()
        self.n_steps = 0
        """Batches decoded."""
        self.n_decoded_tokens = 0
        """Tokens that went through the model, prompts included."""
        self.n_prompt_tokens = 0
        """Tokens of the prompts of admitted sequences."""
        self.n_cached_tokens = 0
        """Prompt tokens that were found in the cache."""

    def submitted(self, sequence: Sequence) -> None:
        """Note that a sequence waits for a place from now on."""
        self._times[sequence] = _Times(self._clock())

    def admitted(self, sequence: Sequence) -> None:
        """Note that a sequence has its place."""
        self._times[sequence].admitted = self._clock()
        self.n_prompt_tokens += sequence.n_prompt
        self.n_cached_tokens += sequence.n_cached

    def scheduled(self, batch: Row[BatchPart]) -> None:
        """Note which sequences are part of a batch for the first time."""
        for part in batch:
            times = self._times[part.sequence]
            if times.scheduled is None:
                times.scheduled = self._clock()

    def decoded(self, batch: Row[BatchPart]) -> None:
        """Count a batch."""
        self.n_steps += 1
        self.n_decoded_tokens += sum(part.width for part in batch)
        self._steps_by_blends[len({part.sequence.blend for part in batch})] += 1

    def waits(self, sequence: Sequence) -> tuple[float, float]:
        """Seconds from a sequence's submission to its admission, and from there to its first batch."""
        times = self._times[sequence]
        assert times.admitted is not None, "a waiting sequence was scheduled"
        assert times.scheduled is not None, "a sequence computed without a batch"
        return times.admitted - times.submitted, times.scheduled - times.admitted

    def ended(self, sequence: Sequence) -> None:
        """Forget a sequence's times."""
        self._times.pop(sequence, None)

    @property
    def n_steps_by_blends(self) -> tuple[tuple[int, int], ...]:
        """``(number of distinct blends, batches that held that number)``, in order."""
        return tuple(sorted(self._steps_by_blends.items()))
