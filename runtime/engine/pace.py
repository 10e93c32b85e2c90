"""How many prompt tokens fit into a step, judged by the last steps. Pure arithmetic: the clock is elsewhere."""

from __future__ import annotations

# A new measurement counts for a quarter: a change of load shows within a few steps, one slow step does not rule.
_WEIGHT = 0.25
# Before the first measurement: little enough for a 7B model on two cores (about 100 ms a token) to answer in seconds.
_FIRST_CHUNK = 32


class Pace:
    """The measured cost of a step's decode part and of a prompt token."""

    def __init__(self, budget_ms: float) -> None:
        self._budget_ms = budget_ms
        self._decode_ms: float | None = None
        self._prefill_ms_per_token: float | None = None

    def observe(self, n_decode: int, n_prefill: int, elapsed_ms: float) -> None:
        """Learn from a step that took ``elapsed_ms`` for ``n_decode`` answering sequences and ``n_prefill`` tokens."""
        if not n_prefill:
            self._decode_ms = _blend(self._decode_ms, elapsed_ms)
            return
        share_ms = elapsed_ms - (self._decode_ms or 0) if n_decode else elapsed_ms
        per_token = max(share_ms, 0.1 * elapsed_ms) / n_prefill
        self._prefill_ms_per_token = _blend(self._prefill_ms_per_token, per_token)

    @property
    def n_prefill(self) -> int:
        """Prompt tokens that fit beside the answering sequences into the budget; at least 1."""
        if self._prefill_ms_per_token is None:
            return _FIRST_CHUNK
        left_ms = self._budget_ms - (self._decode_ms or 0)
        return max(1, int(left_ms / max(self._prefill_ms_per_token, 1e-6)))


def _blend(average: float | None, value: float) -> float:
    return value if average is None else average + _WEIGHT * (value - average)
