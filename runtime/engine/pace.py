"""How many prompt tokens a step takes beside the sequences in decode, learned from the last steps.

Pure arithmetic; the caller owns the clock. It is a controller and not a model of costs: a step that was too long makes
the next step narrower in proportion, and a step that was short makes the next one at most half as wide again. So it
finds the width at which this machine fills the budget, whatever a token costs in a narrow or a wide batch.
"""

from __future__ import annotations

# Tokens are computed in groups of this size: llama.cpp's repacked matrices take four rows at a time and the remaining
# rows one by one (ggml-cpu/repack.cpp), so that 7 tokens cost more than 8.
GROUP = 4
# On x86 they take sixteen rows at a time first (ggml-cpu/arch/x86/repack.cpp): measured on two cores with 2B in Q4_0,
# 12 tokens take 299 ms, 16 take 291, 20 take 385, 28 take 540 and 32 take 580.
BLOCK = 16
# Prompt tokens beside answers, at least: fewer cost up to twice as much for each token.
_MIN_PREFILL = 8
# Tokens of the first step: on two cores a 7B model (about 100 ms a token) takes a few seconds for it.
_FIRST_WIDTH = 32.0
_MIN_WIDTH = GROUP
_MIN_CHANGE, _MAX_CHANGE = 0.5, 1.5
# Where more sequences are in prefill than there are earlier answers, a step may take up to this many budgets.
_MAX_PATIENCE = 4.0
# Where no answer is earlier than the prompts: all came together, and each token of an answer delays a first one.
_BURST_PATIENCE = 8.0


class Pace:
    """The width of mixed steps: tokens of sequences in decode and prompt tokens together."""

    def __init__(self, budget_ms: float, n_batch: int) -> None:
        self._budget_ms = budget_ms
        self._n_batch = n_batch
        self._width = _FIRST_WIDTH

    def observe(self, n_decode: int, n_prefill: int, elapsed_ms: float) -> None:
        """Learn from a step of ``n_decode`` sequences in decode and ``n_prefill`` prompt tokens.

        A step that was narrower than allowed changes nothing, unless it was longer than the budget.
        """
        if not n_prefill:
            return
        n_tokens = n_decode + n_prefill
        if n_tokens >= self._width - GROUP or elapsed_ms > self._budget_ms:
            fitting = n_tokens * self._budget_ms / max(elapsed_ms, 1e-3)
            change = min(max(fitting / self._width, _MIN_CHANGE), _MAX_CHANGE)
            self._width = min(max(self._width * change, _MIN_WIDTH), self._n_batch)

    def n_prefill(self, n_decode: int, n_prefill_sequences: int = 1, n_earlier: int | None = None) -> int:
        """Prompt tokens to compute beside the sequences in decode, in whole groups together with these.

        At least 8, and one for each sequence in decode: where answers alone nearly fill the budget, prompts would
        otherwise take very long, and batches would stay small. For the same reason many prompts beside few earlier
        answers may take several budgets; one long prompt may not.

        Args:
            n_decode: sequences in decode.
            n_prefill_sequences: prompts that are being computed.
            n_earlier: those in decode that were answering when the oldest of these prompts came; all, if None.
        """
        n_earlier = n_decode if n_earlier is None else n_earlier
        patience = min(max(n_prefill_sequences / n_earlier, 1.0), _MAX_PATIENCE) if n_earlier else _BURST_PATIENCE
        n_tokens = max(int(self._width * patience), n_decode + max(n_decode, _MIN_PREFILL))
        return _whole(n_tokens) - n_decode


def _whole(n_tokens: int) -> int:
    """The nearest number of whole blocks if it is less than a group away, else the next one of whole groups."""
    n_tokens += -n_tokens % GROUP
    n_over = n_tokens % BLOCK
    if n_over == GROUP and n_tokens > BLOCK:
        return n_tokens - GROUP
    return n_tokens + GROUP if n_over == BLOCK - GROUP else n_tokens
