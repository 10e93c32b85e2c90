"""How many prompt tokens a step takes beside the sequences in decode, learned from the last steps.

Pure arithmetic; the caller owns the clock. It is a controller and not a model of costs: a step that was too long makes
the next step narrower in proportion, and a step that was short makes the next one at most half as wide again. So it
finds the width at which this machine fills the budget, whatever a token costs in a narrow or a wide batch.
"""

from __future__ import annotations

# Tokens are computed in groups of this size: llama.cpp's repacked matrices take four rows at a time and the remaining
# rows one by one (ggml-cpu/repack.cpp), so that 7 tokens cost more than 8.
GROUP = 4
# Tokens of the first step: on two cores a 7B model (about 100 ms a token) takes a few seconds for it.
_FIRST_WIDTH = 32.0
_MIN_CHANGE, _MAX_CHANGE = 0.5, 1.5
# Where more sequences are in prefill than in decode, a step may take up to this many budgets.
_MAX_PATIENCE = 4.0


class Pace:
    """The width of mixed steps: tokens of sequences in decode and prompt tokens together."""

    def __init__(self, budget_ms: float, n_batch: int) -> None:
        self._budget_ms = budget_ms
        self._n_batch = n_batch
        self._width = _FIRST_WIDTH

    def observe(self, n_decode: int, n_prefill: int, elapsed_ms: float) -> None:
        """Learn from a step of ``n_decode`` sequences in decode and ``n_prefill`` prompt tokens.

        A step that was narrower than allowed changes nothing, unless it was too long.
        """
        if not n_prefill:
            return
        n_tokens = n_decode + n_prefill
        fitting = n_tokens * self._budget_ms / max(elapsed_ms, 1e-3)
        if n_tokens >= self._width - GROUP or fitting < self._width:
            change = min(max(fitting / self._width, _MIN_CHANGE), _MAX_CHANGE)
            self._width = min(max(self._width * change, GROUP), self._n_batch)

    def n_prefill(self, n_decode: int, n_prefill_sequences: int = 1) -> int:
        """Prompt tokens to compute beside ``n_decode`` sequences in decode, for ``n_prefill_sequences`` prompts.

        The result is at least one token for each sequence in decode, and fills whole groups together with these:
        where answers alone nearly fill the budget, prompts would otherwise take very long, and batches would stay
        small. For the same reason many prompts beside few answers may take several budgets; one long prompt may not.
        """
        patience = min(max(n_prefill_sequences / max(n_decode, 1), 1.0), _MAX_PATIENCE)
        n_tokens = max(int(self._width * patience), 2 * n_decode, 1)
        return n_tokens + -n_tokens % GROUP - n_decode
