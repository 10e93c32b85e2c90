"""What an engine's end costs its requests: no process, no clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from runtime.engines.ledger import REFUSAL_S, Ledger, Losses, Ticket
from runtime.engines.protocol import GenerationEvent, Restarted
from runtime.errors import ContextExceeded, EngineDied, EngineUnavailable, HarmfulRequest
from runtime.generation import FinishReason, GenerationRequest, Prompt, Segment, Usage
from runtime.messages import Failed, Finished, Started, Text


def request(name: str, text: str | None = None) -> GenerationRequest:
    """A request whose prompt is its name, unless another text is given."""
    return GenerationRequest(name, Prompt((Segment(text or name, has_control_tokens=False),)))


def add(ledger: Ledger, *names: str, can_restart: bool = False) -> list[Ticket]:
    """Submit requests."""
    return [ledger.add(request(name), 0.0, can_restart=can_restart) for name in names]


def sent(ledger: Ledger) -> list[str]:
    """Ids of those that the engine gets now."""
    return [each.request_id for each in ledger.take_sendable()]


def finish(ledger: Ledger, *names: str) -> None:
    """End requests as the engine does."""
    for name in names:
        ledger.deliver(Finished(name, FinishReason.STOP, Usage(1, 1)))


async def next_of(events: AsyncGenerator[GenerationEvent, None]) -> GenerationEvent:
    """The next event, which must be there already."""
    async with asyncio.timeout(1):
        return await anext(events)


def test_requests_are_sent_in_order_and_once() -> None:
    """The engine gets each request one time."""
    ledger = Ledger()
    add(ledger, "a", "b")
    assert sent(ledger) == ["a", "b"]
    assert sent(ledger) == []
    assert (len(ledger), ledger.n_sent, ledger.n_waiting) == (2, 2, 0)
    assert ledger.remove("a")
    assert not ledger.remove("a")
    finish(ledger, "b")
    assert len(ledger) == 0


async def test_a_failure_is_raised_as_its_class() -> None:
    """The engine's refusal ends the request."""
    ledger = Ledger()
    (ticket,) = add(ledger, "a")
    sent(ledger)
    ledger.deliver(Failed("a", "context_exceeded", "too long"))
    with pytest.raises(ContextExceeded, match="too long"):
        await next_of(ticket.take())
    assert len(ledger) == 0


async def test_waiting_requests_survive_any_number_of_deaths() -> None:
    """Requests that never ran keep their order, and deaths do not count against them."""
    ledger = Ledger()
    add(ledger, "runs", "w1", "w2")
    for now in range(4):
        assert sent(ledger)[-2:] == ["w1", "w2"]
        if now:
            add(ledger, f"runs{now}")
            sent(ledger)
        ledger.announce([f"runs{now}" if now else "runs"])
        ledger.lose_engine(float(now))
        ledger.remove(f"runs{now}" if now else "runs")
    assert ledger.n_waiting == 2


async def test_a_begun_stream_is_cut_and_the_rest_runs_again() -> None:
    """A request runs again unless its client has read text of it, which cannot be taken back."""
    ledger = Ledger()
    stream, quiet = add(ledger, "stream", "quiet")
    (collected,) = add(ledger, "collected", can_restart=True)
    sent(ledger)
    ledger.announce(["stream", "quiet", "collected"])
    takers = {ticket.request_id: ticket.take() for ticket in (stream, quiet, collected)}
    for name, taker in takers.items():
        ledger.deliver(Started(name, 3))
        ledger.deliver(Text(name, "x"))
        assert isinstance(await next_of(taker), Started)
    for name in ("stream", "collected"):
        assert isinstance(await next_of(takers[name]), Text)
    assert ledger.lose_engine(1.0) == Losses(n_again=2, n_cut=1, n_harmful=0)
    with pytest.raises(EngineDied):
        await next_of(takers["stream"])
    assert await next_of(takers["collected"]) == Restarted("collected")
    assert sent(ledger) == ["collected"]
    finish(ledger, "collected")
    assert sent(ledger) == ["quiet"]
    ledger.deliver(Text("quiet", "y"))
    assert await next_of(takers["quiet"]) == Text("quiet", "y")


async def test_only_the_cause_of_two_deaths_is_refused() -> None:
    """Eight ran at the first death; each begins again alone, and the one that ends the next engine is the cause."""
    ledger = Ledger()
    names = [f"r{i}" for i in range(7)]
    add(ledger, *names[:3])
    (poison,) = add(ledger, "poison")
    add(ledger, *names[3:], "waits")
    sent(ledger)
    ledger.announce([*names, "poison"])
    assert ledger.lose_engine(1.0) == Losses(n_again=9, n_cut=0, n_harmful=0)
    for name in names[:3]:
        assert sent(ledger) == [name]
        assert sent(ledger) == [], "a suspect runs alone until it has come further than before"
        finish(ledger, name)
    assert sent(ledger) == ["poison"]
    ledger.announce(["poison"])
    assert ledger.lose_engine(2.0) == Losses(n_again=0, n_cut=0, n_harmful=1)
    with pytest.raises(HarmfulRequest):
        await next_of(poison.take())
    assert sent(ledger) == [*names[3:], "waits"]


def test_a_suspect_that_came_further_is_cleared() -> None:
    """Other requests run beside a suspect once it has a token more than when the engine ended."""
    ledger = Ledger()
    add(ledger, "a", "b", can_restart=True)
    sent(ledger)
    ledger.announce(["a", "b"])
    ledger.deliver(Text("a", "one"))
    ledger.lose_engine(1.0)
    assert sent(ledger) == ["a"]
    ledger.deliver(Text("a", "one"))
    assert sent(ledger) == []
    ledger.deliver(Text("a", "two"))
    assert sent(ledger) == ["b"]


async def test_a_suspect_does_not_wait_for_streams() -> None:
    """A client whose stream was cut asks again while another stream runs: both go on, and so does a newcomer."""
    ledger = Ledger()
    cut, other = add(ledger, "cut", "other")
    sent(ledger)
    ledger.announce(["cut", "other"])
    for ticket in (cut, other):
        taker = ticket.take()
        ledger.deliver(Text(ticket.request_id, "one"))
        assert isinstance(await next_of(taker), Text)
    assert ledger.lose_engine(1.0) == Losses(n_again=0, n_cut=2, n_harmful=0)
    again = ledger.add(request("cut again", "cut"), 2.0, can_restart=False)
    (long,) = add(ledger, "long")
    assert sent(ledger) == ["cut again"]
    ledger.deliver(Text("cut again", "one"))
    assert sent(ledger) == []
    ledger.deliver(Text("cut again", "two"))
    assert sent(ledger) == ["long"]
    for ticket in (again, long):
        taker = ticket.take()
        ledger.deliver(Text(ticket.request_id, "x"))
        assert isinstance(await next_of(taker), Text)
    ledger.add(request("other again", "other"), 3.0, can_restart=False)
    add(ledger, "newcomer")
    assert sent(ledger) == ["other again"]
    finish(ledger, "other again")
    assert sent(ledger) == ["newcomer"]


async def test_a_death_of_known_cause_counts_for_no_other() -> None:
    """A request that was cleared and ran beside the cause runs once more."""
    ledger = Ledger()
    add(ledger, "cleared", "poison", can_restart=True)
    sent(ledger)
    ledger.announce(["cleared", "poison"])
    ledger.lose_engine(1.0)
    assert sent(ledger) == ["cleared"]
    ledger.deliver(Text("cleared", "one"))
    assert sent(ledger) == ["poison"]
    ledger.announce(["cleared", "poison"])
    assert ledger.lose_engine(2.0) == Losses(n_again=1, n_cut=0, n_harmful=1)
    assert sent(ledger) == ["cleared"]


async def test_a_request_runs_twice_at_most() -> None:
    """After two deaths of unknown cause a request ends with an error that invites another try."""
    ledger = Ledger()
    (first,) = add(ledger, "a", can_restart=True)
    for now in (1.0, 2.0):
        sent(ledger)
        ledger.announce(["a"])
        ledger.deliver(Text("a", "x"))
        ledger.deliver(Text("a", "y"))
        ledger.lose_engine(now)
        ledger._suspects.clear()
    events = first.take()
    assert [await next_of(events), await next_of(events)] == [Text("a", "x"), Text("a", "y")]
    with pytest.raises(EngineDied):
        await next_of(events)


def test_the_refusal_ends_after_a_while() -> None:
    """A request that was running when a user killed the engine twice is not refused for ever."""
    ledger = Ledger()
    for now in (1.0, 2.0):
        if now == 1.0:
            add(ledger, "a")
        sent(ledger)
        ledger.announce(["a"])
        ledger.lose_engine(now)
    with pytest.raises(HarmfulRequest):
        ledger.add(request("b", "a"), 3.0, can_restart=False)
    assert ledger.add(request("b", "a"), 2.0 + REFUSAL_S, can_restart=False)
    assert ledger.add(request("c", "other"), 3.0, can_restart=False)


async def test_waiting_requests_can_be_failed_alone() -> None:
    """Waiting requests can be failed without those that the engine has."""
    ledger = Ledger()
    add(ledger, "sent")
    sent(ledger)
    one, two = add(ledger, "one", "two")
    ledger.fail_waiting(EngineUnavailable("not ready"), one)
    with pytest.raises(EngineUnavailable):
        await next_of(one.take())
    ledger.fail_waiting(EngineUnavailable("not ready"))
    with pytest.raises(EngineUnavailable):
        await next_of(two.take())
    assert (ledger.n_sent, ledger.n_waiting) == (1, 0)
