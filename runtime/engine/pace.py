"""How many prompt tokens a step takes beside the answering sequences, judged by the last steps.

Pure arithmetic: the clock is elsewhere. A controller, not a model of costs: a step that was too long makes the next one
shorter by as much, a step that was short enough makes the next one half as long again at most. So it finds the width at
which this machine fills the budget, whatever a token costs in a narrow or a wide batch.
"""

from __future__ import annotations

# Batches are computed in groups of so many tokens: llama.cpp's repacked matrices take rows four at a time and what is
# left one by one (ggml-cpu/repack.cpp), so that 7 tokens cost more than 8.
GROUP = 4
# Before the first measurement: little enough for a 7B model on two cores (about 100 ms a token) to answer in seconds.
_FIRST_WIDTH = 32.0
_MIN_CHANGE, _MAX_CHANGE = 0.5, 1.5
# Where more prompts are read than answers stream, the few wait for the many: up to so many budgets a step.
_MAX_PATIENCE = 4.0


class Pace:
    """The width of mixed steps: answering sequences and prompt tokens together."""

    def __init__(self, budget_ms: float, n_batch: int) -> None:
        self._budget_ms = budget_ms
        self._n_batch = n_batch
        self._width = _FIRST_WIDTH

    def observe(self, n_decode: int, n_prefill: int, elapsed_ms: float) -> None:
        """Learn from a step that took ``elapsed_ms`` for ``n_decode`` answering sequences and ``n_prefill`` tokens.

        A step that was narrower than it might have been tells nothing, unless it was too long all the same.
        """
        if not n_prefill:
            return
        n_tokens = n_decode + n_prefill
        fitting = n_tokens * self._budget_ms / max(elapsed_ms, 1e-3)
        if n_tokens >= self._width - GROUP or fitting < self._width:
            change = min(max(fitting / self._width, _MIN_CHANGE), _MAX_CHANGE)
            self._width = min(max(self._width * change, GROUP), self._n_batch)

    def n_prefill(self, n_decode: int, n_prefill_sequences: int = 1) -> int:
        """Prompt tokens to read beside ``n_decode`` answering sequences, for ``n_prefill_sequences`` prompts.

        At least one for each answer, and whole groups together: where answers alone nearly fill the budget, prompts
        would otherwise crawl, and batches stay small for it. A burst of prompts beside few answers may take several
        budgets, for the same reason; one long prompt may not.
        """
        patience = min(max(n_prefill_sequences / max(n_decode, 1), 1.0), _MAX_PATIENCE)
        n_tokens = max(int(self._width * patience), 2 * n_decode, 1)
        return n_tokens + -n_tokens % GROUP - n_decode
