"""How long the requests in flight will take, judged by the last that ended. Pure: the caller gives the time."""

from __future__ import annotations

import math
from collections import deque

from runtime.errors import Overloaded

_N_ENDS = 32
MIN_RETRY_S, MAX_RETRY_S = 1, 60


class DrainRate:
    """The times at which the last requests ended."""

    def __init__(self) -> None:
        self._ended_at: deque[float] = deque(maxlen=_N_ENDS)

    def note_end(self, now: float) -> None:
        """A request ended; ``now`` is a monotonic clock's time in seconds."""
        self._ended_at.append(now)

    def retry_after_s(self, n_requests: int, now: float) -> int:
        """Whole seconds until ``n_requests`` have ended, at the pace of the last ends."""
        if len(self._ended_at) < 2:
            return MIN_RETRY_S
        s_per_end = (now - self._ended_at[0]) / len(self._ended_at)
        return min(max(math.ceil(n_requests * s_per_end), MIN_RETRY_S), MAX_RETRY_S)

    def overloaded(self, n_requests: int, now: float) -> Overloaded:
        """What a request is refused with while ``n_requests`` are in flight, as many as there may be."""
        retry_s = self.retry_after_s(n_requests, now)
        return Overloaded(f"{n_requests} requests are running or waiting already; try again in {retry_s} s", retry_s)
