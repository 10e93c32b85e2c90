"""How many prompt tokens fit into a step, judged by the last steps. Pure arithmetic: the clock is elsewhere."""

from __future__ import annotations

# Batches are computed in groups of so many tokens: llama.cpp's repacked matrices take rows four at a time and what is
# left one by one (ggml-cpu/repack.cpp), so that 7 tokens cost more than 8.
GROUP = 4
# A new measurement counts for a quarter: a change of load shows within a few steps, one slow step does not rule.
_WEIGHT = 0.25
# Before the first measurement: little enough for a 7B model on two cores (about 100 ms a token) to answer in seconds.
_FIRST_CHUNK = 32
# Prompts get this part of the budget, and as long as decoding takes, even where decoding alone fills the budget. Less
# starves them on a slow machine, and the batches stay small for it: eight prompts of 64 tokens for eight answers of 64
# then lose a quarter of the throughput; so they lose a tenth.
_LEAST_SHARE = 0.5


class Pace:
    """What decode steps of each size and prompt tokens have cost."""

    def __init__(self, budget_ms: float) -> None:
        self._budget_ms = budget_ms
        self._decode_ms: dict[int, float] = {}
        self._prompt_token_ms: float | None = None

    def observe(self, n_decode: int, n_prefill: int, elapsed_ms: float) -> None:
        """Learn from a step that took ``elapsed_ms`` for ``n_decode`` answering sequences and ``n_prefill`` tokens."""
        if n_prefill:
            for_prompts = max(elapsed_ms - self._expect_decode_ms(n_decode), 0.1 * elapsed_ms)
            self._prompt_token_ms = _average(self._prompt_token_ms, for_prompts / n_prefill)
        elif n_decode:
            n_groups = -(-n_decode // GROUP)
            self._decode_ms[n_groups] = _average(self._decode_ms.get(n_groups), elapsed_ms)

    def n_prefill(self, n_decode: int) -> int:
        """Prompt tokens to read beside ``n_decode`` answering sequences; at least 1.

        As many as fit into what decoding leaves of the budget, rounded up to whole groups together with the others.
        """
        n_tokens = _FIRST_CHUNK
        if self._prompt_token_ms is not None:
            decode_ms = self._expect_decode_ms(n_decode)
            left_ms = max(self._budget_ms - decode_ms, decode_ms, _LEAST_SHARE * self._budget_ms)
            n_tokens = max(1, int(left_ms / max(self._prompt_token_ms, 1e-6)))
        return n_tokens + -(n_decode + n_tokens) % GROUP

    def _expect_decode_ms(self, n_decode: int) -> float:
        """The cost of the nearest size that has been measured."""
        if not n_decode or not self._decode_ms:
            return 0.0
        n_groups = -(-n_decode // GROUP)
        return self._decode_ms[min(self._decode_ms, key=lambda known: abs(known - n_groups))]


def _average(average: float | None, value: float) -> float:
    return value if average is None else average + _WEIGHT * (value - average)
