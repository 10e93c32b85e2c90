"""The supervision's table, its backoff and its fallback: no process, no clock."""

from __future__ import annotations

from itertools import product

import pytest

from runtime.engines.states import (
    MAX_BACKOFF_S,
    MAX_PAUSE_S,
    MOVES,
    STEADY_S,
    Ending,
    EngineState,
    IllegalEngineMoveError,
    Supervision,
)

KILLED = Ending("the engine process was killed", is_crash=True)
REFUSED = Ending("no such file", is_crash=False)
S = EngineState


def supervision_in(state: EngineState) -> Supervision:
    """A supervision brought to that state by real events."""
    supervision = Supervision(has_fallback=True)
    supervision.begin_start(0.0)
    if state is S.STARTING:
        return supervision
    if state is S.DEGRADED:
        supervision.end(KILLED, 1.0)
        supervision.begin_start(1.0)
        supervision.become_ready(2.0)
        return supervision
    if state is S.FAILED:
        supervision.end(REFUSED, 1.0)
        return supervision
    if state is S.STOPPED:
        supervision.stop()
        return supervision
    supervision.become_ready(1.0)
    if state is S.RESTARTING:
        supervision.end(KILLED, 2.0)
    return supervision


@pytest.mark.parametrize("state", EngineState)
def test_every_state_can_be_reached(state: EngineState) -> None:
    """Real events lead to each state of the table."""
    assert supervision_in(state).state is state


@pytest.mark.parametrize(("before", "after"), list(product(EngineState, EngineState)))
def test_moves_are_those_of_the_table(before: EngineState, after: EngineState) -> None:
    """Every pair of states: an allowed move is made, a forbidden one raises and changes nothing."""
    supervision = supervision_in(before)
    if after in MOVES[before]:
        supervision._move(after)
        assert supervision.state is after
    else:
        with pytest.raises(IllegalEngineMoveError, match=f"{before} to {after}"):
            supervision._move(after)
        assert supervision.state is before


def test_a_crash_while_loading_falls_back_for_one_start() -> None:
    """The start after it has no lanes and says why; the one after that has lanes again."""
    supervision = Supervision(has_fallback=True)
    supervision.begin_start(0.0)
    assert supervision.end(KILLED, 1.0) == 0.0
    assert supervision.is_fallback
    supervision.begin_start(1.0)
    supervision.become_ready(3.0)
    status = supervision.status(3.0)
    assert (status.state, status.n_fallbacks, status.n_deaths, status.last_start_s) == (S.DEGRADED, 1, 1, 2.0)
    assert status.reason == "the engine process was killed before it was ready; grouped for this start"
    supervision.end(KILLED, 4.0)
    assert (supervision.state, supervision.is_fallback) == (S.RESTARTING, False)
    supervision.begin_start(4.0)
    supervision.become_ready(5.0)
    assert supervision.status(5.0).state is S.READY


def test_two_crashes_while_loading_fail_the_start() -> None:
    """After a crash with lanes and one without, the third start tries lanes again, after a pause."""
    supervision = Supervision(has_fallback=True)
    supervision.begin_start(0.0)
    supervision.end(KILLED, 1.0)
    supervision.begin_start(1.0)
    assert supervision.end(KILLED, 2.0) == 1.0
    assert (supervision.state, supervision.is_fallback) == (S.FAILED, False)
    assert supervision.status(2.25).next_start_in_s == 0.8


def test_batching_that_was_asked_for_is_not_overruled() -> None:
    """Without a fallback a crash while loading is a failed start."""
    supervision = Supervision(has_fallback=False)
    supervision.begin_start(0.0)
    assert supervision.end(KILLED, 1.0) == 1.0
    assert (supervision.state, supervision.status(1.0).n_fallbacks) == (S.FAILED, 0)


def test_a_model_that_is_refused_needs_no_fallback() -> None:
    """An engine that says why it cannot load would say so without lanes too."""
    assert not supervision_in(S.FAILED).is_fallback


def test_backoff_grows_and_a_steady_engine_resets_it() -> None:
    """The pause grows from 0 to 1, 2, 4 ... seconds up to the limit; an engine that ran for a while resets it."""
    supervision = Supervision(has_fallback=True)
    delays, now = [], 0.0
    for _ in range(8):
        supervision.begin_start(now)
        supervision.become_ready(now)
        delays.append(supervision.end(KILLED, now + 1))
        now += 1
    assert delays == [0.0, 1.0, 2.0, MAX_PAUSE_S, MAX_PAUSE_S, MAX_PAUSE_S, MAX_PAUSE_S, MAX_PAUSE_S]
    supervision.begin_start(now)
    supervision.become_ready(now)
    assert supervision.end(KILLED, now + STEADY_S) == 0.0


def test_failed_starts_are_tried_ever_more_seldom() -> None:
    """The pause after a failed start doubles from one second up to the limit."""
    supervision, delays = Supervision(has_fallback=False), []
    for now in range(7):
        supervision.begin_start(float(now))
        delays.append(supervision.end(REFUSED, float(now)))
    assert delays == [1.0, 2.0, 4.0, 8.0, 16.0, MAX_BACKOFF_S, MAX_BACKOFF_S]


def test_the_return_to_lanes_is_no_death() -> None:
    """A planned end does not count as a death, and each fallback doubles the time until the next return."""
    supervision = supervision_in(S.DEGRADED)
    assert supervision.return_delay_s == 60.0
    assert supervision.end(Ending("", is_crash=True, is_planned=True), 70.0) == 0.0
    assert (supervision.state, supervision.is_fallback, supervision.status(70.0).n_deaths) == (S.RESTARTING, False, 1)
    supervision.begin_start(70.0)
    supervision.end(KILLED, 71.0)
    assert supervision.is_fallback
    assert supervision.return_delay_s == 120.0


def test_stopping_twice_is_allowed() -> None:
    """A second stop changes nothing."""
    supervision = supervision_in(S.STOPPED)
    supervision.stop()
    assert supervision.state is S.STOPPED
