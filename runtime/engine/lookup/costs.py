"""What a step costs by the number of its tokens, learned from the steps before. Pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.engine.pace import GROUP

# A new measurement counts as much as the three before it, and no more than this many times what was known.
_WEIGHT, _MAX_CHANGE = 0.25, 1.5
# Until a width was seen this often, its best time counts: the first steps of a width build a graph and touch memory.
_N_TRIALS = 2
# A width that was not measured is taken to cost this part of what each group beyond the next narrower width would cost
# in proportion. So it is tried where drafts were nearly always accepted, and not at even odds.
_ASSUMED_SLOPE = 0.5
# Measurements older than this many steps count no more: contexts have grown, or the machine was busy.
_MAX_AGE = 512


@dataclass(slots=True)
class _Known:
    """The cost of one width, how often it was measured, and at which step last."""

    ms: float
    n_seen: int
    seen_at: int


class StepCosts:
    """Milliseconds by width: the tokens of a batch that holds no prompt."""

    def __init__(self) -> None:
        self._known: dict[int, _Known] = {}
        self._now = 0

    def observe(self, width: int, elapsed_ms: float) -> None:
        """Learn from a step."""
        self._now += 1
        known = self._known.get(width)
        if known is None or self._is_old(known):
            self._known[width] = _Known(elapsed_ms, 1, self._now)
            return
        change = min(elapsed_ms, _MAX_CHANGE * known.ms) - known.ms
        known.ms += min(change, 0.0) if known.n_seen < _N_TRIALS else _WEIGHT * change
        known.n_seen, known.seen_at = known.n_seen + 1, self._now

    def _is_old(self, known: _Known) -> bool:
        return self._now - known.seen_at >= _MAX_AGE

    def cost(self, width: int) -> float | None:
        """What a step of ``width`` tokens costs, in milliseconds; None if no step as narrow was measured."""
        own, narrower, cheapest_wider = None, 0, float("inf")
        for other, known in self._known.items():
            if self._is_old(known):
                continue
            if other == width:
                own = known
            elif other < width:
                narrower = max(narrower, other)
            else:
                cheapest_wider = min(cheapest_wider, known.ms)
        if own is not None and (own.n_seen >= _N_TRIALS or not narrower):
            return own.ms
        if not narrower:
            return None
        # No step costs more than a wider one.
        n_groups, n_narrower = -(-width // GROUP), -(-narrower // GROUP)
        growth = 1 + _ASSUMED_SLOPE * (n_groups / n_narrower - 1)
        assumed = min(self._known[narrower].ms * growth, cheapest_wider)
        return assumed if own is None else min(assumed, own.ms)
