"""How long the engine may take at most: for a batch, judged by the batches before it. The clock is elsewhere."""

from __future__ import annotations

from pathlib import Path

MIN_LIMIT_S, MAX_LIMIT_S = 6.0, 600.0
"""A busy machine may withhold the processor for seconds; no batch of a model worth serving takes ten minutes."""
_FACTOR = 10.0
"""A batch that takes this many times as long as the slowest before it hangs."""
_MIN_FLOPS = 1e9
"""Operations a second of the slowest machine, assumed until a batch was measured; a Raspberry Pi 4 has about 10e9."""
_WIDE = 16
"""From this many tokens on a batch tells what a token costs; below it, what a batch costs."""
_DECAY = 0.98
"""A slow batch is remembered for some fifty more: the machine may have been busy."""
_MIN_BYTES_PER_S = 5e6
"""A file is read and checked at this speed at least: a slow memory card's."""


def reading_limit_s(path: Path) -> float:
    """How long a file may take to be read and checked; 0 for one that is not there."""
    try:
        return path.stat().st_size / _MIN_BYTES_PER_S
    except OSError:
        return 0.0


class StepLimit:
    """The longest time that the engine may need before its next event."""

    def __init__(self, n_params: int) -> None:
        """Start without a measurement.

        Args:
            n_params: parameters of the model, each of which costs two operations a token.
        """
        self._s_per_token = 2.0 * n_params / _MIN_FLOPS / _FACTOR
        self._is_measured = False
        self._s_per_batch = 0.0

    def observe(self, n_tokens: int, elapsed_s: float) -> None:
        """Learn from a batch of ``n_tokens`` that took ``elapsed_s``."""
        if n_tokens < _WIDE:
            self._s_per_batch = max(elapsed_s, self._s_per_batch * _DECAY)
        else:
            known_s = self._s_per_token * _DECAY if self._is_measured else 0.0
            self._s_per_token, self._is_measured = max(elapsed_s / n_tokens, known_s), True

    def limit_s(self, n_tokens: int) -> float:
        """How long a batch of ``n_tokens`` may take, in steps of two, so that it seldom changes."""
        expected_s = self._s_per_batch + self._s_per_token * n_tokens
        limit_s = MIN_LIMIT_S
        while limit_s < min(_FACTOR * expected_s, MAX_LIMIT_S):
            limit_s *= 2
        return limit_s
