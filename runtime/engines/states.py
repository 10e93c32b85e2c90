"""The life of the engine as its supervisor sees it: one state table, the backoff, and the fallback for one start.

::

    STARTING ──> READY | DEGRADED ──> RESTARTING ──> READY | DEGRADED
        │                                 │  ^
        │   (a crash with lanes: RESTARTING  │
        │    again, once without lanes)   v  │ the next attempt
        └──────────────────────────────> FAILED              STOPPED follows any of them

Pure policy: no process, no clock. The caller gives the time.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

STEADY_S = 30.0
"""When an engine that was ready for this long ends, the backoff begins again."""
MAX_BACKOFF_S = 30.0
"""Longest pause between starts that fail."""
MAX_PAUSE_S = 4.0
"""Longest pause between engines that become ready and soon end.

Requests wait meanwhile, and loading the model is a pause too.
"""
MIN_RETURN_S, MAX_RETURN_S = 60.0, 3600.0
"""How long an engine without lanes is kept before lanes are tried again: twice as long after each crash with them."""


class EngineState(StrEnum):
    """Where the engine stands."""

    STARTING = "starting"
    """The first start: the model is being loaded."""
    READY = "ready"
    """Requests are answered."""
    DEGRADED = "degraded"
    """Requests are answered, one adapter a batch, because the engine crashed when it was started with lanes."""
    RESTARTING = "restarting"
    """The engine ended and is started again, perhaps after a pause. Requests wait."""
    FAILED = "failed"
    """The last start failed. Requests are refused until a later attempt succeeds."""
    STOPPED = "stopped"
    """The server ends."""


MOVES: dict[EngineState, frozenset[EngineState]] = {
    EngineState.STARTING: frozenset(
        {EngineState.READY, EngineState.RESTARTING, EngineState.FAILED, EngineState.STOPPED}
    ),
    EngineState.READY: frozenset({EngineState.RESTARTING, EngineState.STOPPED}),
    EngineState.DEGRADED: frozenset({EngineState.RESTARTING, EngineState.STOPPED}),
    EngineState.RESTARTING: frozenset(
        {
            EngineState.READY,
            EngineState.DEGRADED,
            EngineState.RESTARTING,
            EngineState.FAILED,
            EngineState.STOPPED,
        }
    ),
    EngineState.FAILED: frozenset({EngineState.RESTARTING, EngineState.STOPPED}),
    EngineState.STOPPED: frozenset(),
}


class IllegalEngineMoveError(Exception):
    """The supervisor tried a move that the table does not allow: a mistake of ours. Nothing has changed."""


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """What an operator needs to know of the engine. Times are seconds."""

    state: EngineState = EngineState.STARTING
    reason: str = ""
    """Why the engine ended last, or why it is degraded; empty if it never ended."""
    n_deaths: int = 0
    """How often an engine process ended without being stopped."""
    n_fallbacks: int = 0
    """How often it was started without lanes because it had crashed with them."""
    n_starts: int = 0
    last_start_s: float = 0.0
    """How long the last successful start took."""
    next_start_in_s: float | None = None
    """Time until the next start; None unless the server waits for one."""

    @property
    def is_serving(self) -> bool:
        """Whether requests are answered."""
        return self.state in (EngineState.READY, EngineState.DEGRADED)


@dataclass(frozen=True, slots=True)
class Ending:
    """How one engine process ended."""

    reason: str
    is_crash: bool
    """Whether it ended without giving a reason: killed, aborted, hung."""
    is_planned: bool = False
    """Whether it was ended to be started with lanes again."""


class Supervision:
    """Owns the state. Every method takes the time of a monotonic clock, in seconds."""

    def __init__(self, *, has_fallback: bool) -> None:
        """Begin with the first start.

        Args:
            has_fallback: whether a start without lanes may follow a crash while they are being proven.
        """
        self._has_fallback = has_fallback
        self._state = EngineState.STARTING
        self._reason = ""
        self._n_deaths = self._n_fallbacks = self._n_starts = self._n_quick_deaths = 0
        self._started_at = self._ready_at = self._next_start_at = 0.0
        self._last_start_s = 0.0
        self.is_fallback = False
        """Whether the next (or present) start is one without lanes."""

    @property
    def state(self) -> EngineState:
        """Where the engine stands."""
        return self._state

    @property
    def last_start_s(self) -> float:
        """How long the last successful start took."""
        return self._last_start_s

    @property
    def fallback_reason(self) -> str:
        """Why this start is one without lanes, in words for ``/health`` and the log; empty if it has them."""
        return f"{self._reason} before it was ready; grouped for this start" if self.is_fallback else ""

    def status(self, now: float) -> EngineStatus:
        """The state and its numbers."""
        is_waiting = self._state in (EngineState.RESTARTING, EngineState.FAILED) and self._next_start_at > now
        return EngineStatus(
            state=self._state,
            reason=self.fallback_reason if self._state is EngineState.DEGRADED else self._reason,
            n_deaths=self._n_deaths,
            n_fallbacks=self._n_fallbacks,
            n_starts=self._n_starts,
            last_start_s=round(self._last_start_s, 3),
            next_start_in_s=round(self._next_start_at - now, 1) if is_waiting else None,
        )

    def begin_start(self, now: float) -> None:
        """An engine process is being started."""
        if self._state is EngineState.FAILED:
            self._move(EngineState.RESTARTING)
        self._n_starts += 1
        self._started_at = now

    def become_ready(self, now: float) -> None:
        """The model is loaded."""
        self._move(EngineState.DEGRADED if self.is_fallback else EngineState.READY)
        self._ready_at = now
        self._last_start_s = now - self._started_at

    def end(self, ending: Ending, now: float) -> float:
        """The engine process ended; how many seconds to wait before the next start."""
        if ending.is_planned:
            self._move(EngineState.RESTARTING)
            self.is_fallback = False
            return 0.0
        was_ready = self._state in (EngineState.READY, EngineState.DEGRADED)
        falls_back = self._has_fallback and ending.is_crash and not was_ready and not self.is_fallback
        self._move(EngineState.RESTARTING if was_ready or falls_back else EngineState.FAILED)
        self._n_deaths += 1
        self._reason = ending.reason
        self.is_fallback = falls_back
        if falls_back:
            self._n_fallbacks += 1
            return 0.0
        is_steady = was_ready and now - self._ready_at >= STEADY_S
        self._n_quick_deaths = 0 if is_steady else self._n_quick_deaths + 1
        delay_s = self._backoff_s(was_ready=was_ready)
        self._next_start_at = now + delay_s
        return delay_s

    @property
    def return_delay_s(self) -> float:
        """How long a start without lanes is kept before an idle moment is used for one with lanes."""
        return min(MAX_RETURN_S, MIN_RETURN_S * 2.0 ** (self._n_fallbacks - 1))

    def stop(self) -> None:
        """The server ends."""
        if self._state is not EngineState.STOPPED:
            self._move(EngineState.STOPPED)

    def _backoff_s(self, *, was_ready: bool) -> float:
        """None after a first death; one that follows soon waits longer each time, a failed start at least 1 s."""
        n_free, max_s = (2, MAX_PAUSE_S) if was_ready else (1, MAX_BACKOFF_S)
        return min(max_s, 2.0 ** (self._n_quick_deaths - n_free)) if self._n_quick_deaths >= n_free else 0.0

    def _move(self, state: EngineState) -> None:
        if state not in MOVES[self._state]:
            raise IllegalEngineMoveError(f"{self._state} to {state}")
        self._state = state
