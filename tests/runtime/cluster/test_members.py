"""Which replicas there are: which join, which are lost, and what all of them are as one engine."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import pytest

from runtime.cluster.members import Members
from runtime.cluster.totals import total
from runtime.cluster.values import Report
from runtime.engines.protocol import Replica
from runtime.engines.states import EngineState, EngineStatus
from runtime.generation import BASE, Blend, BlendMember
from runtime.messages import LaneStats, Stats
from tests.runtime.double import READY

SERVING, STARTING = EngineStatus(EngineState.READY, n_starts=1, last_start_s=2.0), EngineStatus()
PIRATE = Blend((BlendMember("a" * 64),))
STATS = Stats(
    n_running=2,
    n_waiting=1,
    n_kv_cells_used=100,
    n_kv_cells_kept=50,
    n_steps=7,
    n_decoded_tokens=60,
    n_prompt_tokens=40,
    n_cached_tokens=10,
    n_steps_by_blends=((1, 4), (3, 3)),
    lanes=LaneStats(1, 2, 3, 2, 9, ("a" * 64,)),
    running_blends=(BASE, PIRATE),
    waiting_blends=(PIRATE,),
)


def report(
    rank: int, replica_id: str = "", status: EngineStatus = SERVING, failure: str = "", n_restarts: int = 0
) -> Report:
    """What a replica says; one that serves has loaded the model."""
    has_engine = status.is_serving
    replica = Replica(
        str(rank), f"10.0.0.{rank}", status, READY if has_engine else None, STATS if has_engine else None, n_restarts
    )
    return Report(replica_id or f"id-{rank}", replica, 1.0, failure, ())


def state_of(members: Members) -> EngineState:
    """The state of all replicas as one engine."""
    return members.status.state


def test_replicas_that_become_ready_are_told_once() -> None:
    """A replica joins when its engine is ready, and not again while it stays."""
    members = Members(2)
    assert not members.take([report(0, status=STARTING), report(1, status=STARTING)], 1.0)
    assert state_of(members) is EngineState.STARTING
    assert members.take([report(0), report(1, status=STARTING)], 2.0)
    assert not members.take([report(0), report(1, status=STARTING)], 3.0)
    assert members.take([report(0), report(1)], 4.0)
    assert members.ready_ids == ["id-0", "id-1"]


def test_one_that_serves_is_enough() -> None:
    """With one of two replicas the engine is ready, and says how many answer; without any it is being restarted."""
    members = Members(2)
    members.take([report(1), report(0, status=STARTING)], 1.0)
    assert (state_of(members), members.status.reason) == (EngineState.READY, "1 of 2 replicas answer")
    members.take([report(0), report(1)], 2.0)
    assert (state_of(members), members.status.reason) == (EngineState.READY, "")
    members.take([], 3.0)
    assert state_of(members) is EngineState.RESTARTING
    assert members.replicas == ()


def test_the_first_start_waits_for_all_but_not_for_ever() -> None:
    """One of two replicas is complete after a minute; both are at once."""
    one, both = Members(2), Members(2)
    complete = []
    for now in (10.0, 69.0, 71.0):
        one.take([report(0)], now)
        complete.append(one.is_complete)
    assert complete == [False, False, True]
    both.take([report(0), report(1)], 1.0)
    assert both.is_complete


def test_a_lost_replica_is_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    """What it had counted stays in the sums, and its replacement has its name."""
    caplog.set_level(logging.INFO)
    members = Members(2)
    members.take([report(0), report(1, n_restarts=3)], 1.0)
    members.note_adapter("id-1", "a" * 64, Path("pirate.gguf"))
    members.take([report(0)], 2.0)
    assert members.n_restarts == 4
    assert members.status.n_deaths == 1
    assert members.take([report(0), report(1, "another")], 3.0)
    assert [replica.name for replica in members.replicas] == ["0", "1"]
    assert not members.has_adapter("another", "a" * 64, Path("pirate.gguf"))
    assert "replica 1 on 10.0.0.1 is gone" in caplog.messages


def test_a_replica_that_cannot_start_fails_the_first_start_alone(caplog: pytest.LogCaptureFixture) -> None:
    """Its reason is the failure while none is ready, and one line of the log; beside a ready one it is no failure."""
    members = Members(2)
    broken = report(1, status=STARTING, failure="base.gguf: no such file")
    members.take([report(0, status=STARTING), broken], 1.0)
    members.take([report(0, status=STARTING), broken], 2.0)
    assert members.failure == "base.gguf: no such file"
    members.take([report(0), broken], 3.0)
    assert members.failure == ""
    assert caplog.messages == ["replica 1 on 10.0.0.1 cannot start: base.gguf: no such file"]


def test_a_lost_head_fails_the_engine_until_it_answers() -> None:
    """The state is failed and the reason names the head; replicas that still answer do not hide it."""
    members = Members(1)
    members.take([report(0)], 1.0)
    members.note_head("10.0.0.9:6379", is_lost=True)
    assert state_of(members) is EngineState.FAILED
    assert members.status.reason == "the head of the Ray cluster at 10.0.0.9:6379 does not answer"
    members.note_head("10.0.0.9:6379", is_lost=False)
    assert state_of(members) is EngineState.READY
    members.stop()
    assert state_of(members) is EngineState.STOPPED


def test_adapters_are_noted_by_content_and_file() -> None:
    """An adapter that moved to another file is offered again; a forgotten one too."""
    members = Members(1)
    members.take([report(0)], 1.0)
    assert not members.has_adapter("id-0", "a" * 64, Path("one.gguf"))
    members.note_adapter("id-0", "a" * 64, Path("one.gguf"))
    assert members.has_adapter("id-0", "a" * 64, Path("one.gguf"))
    assert not members.has_adapter("id-0", "a" * 64, Path("two.gguf"))
    members.forget_adapter("a" * 64)
    assert not members.has_adapter("id-0", "a" * 64, Path("one.gguf"))


def test_loads_add_up() -> None:
    """Counts are sums, blends and digests are unions; of one report the total is that report."""
    assert total([]) is None
    assert total([STATS]) == STATS
    other = dataclasses.replace(STATS, n_steps_by_blends=((1, 1), (2, 5)), running_blends=(BASE,))
    both = total([STATS, other])
    assert both is not None
    assert (both.n_running, both.n_kv_cells_kept, both.n_steps) == (4, 100, 14)
    assert both.n_steps_by_blends == ((1, 5), (2, 5), (3, 3))
    assert both.lanes == LaneStats(2, 4, 6, 4, 18, ("a" * 64,))
    assert both.running_blends == (BASE, PIRATE)
