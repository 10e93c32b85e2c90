"""The engine ends, hangs, or loops: what its clients see, and that only what they saw is lost."""

from __future__ import annotations

import asyncio
import signal
import time
import uuid

import pytest

from tests.faults.world import End, World, ask_openai, expected, kill, peft, spread
from tests.tiny_gemma.facts import QUESTIONS

POISON = "I end the engine"


def new_poison() -> str:
    """A request that no test has asked before, which would be refused at once."""
    return f"{POISON} {uuid.uuid4()}"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV])
async def test_a_death_costs_only_begun_streams(world: World, number: signal.Signals) -> None:
    """Requests that had sent nothing are answered by the next engine, token for token."""
    world.arm("step", "slow 0.1")
    quick = [
        (voice, question, asyncio.create_task(ask_openai(world, question, voice=voice)))
        for voice, question in spread(20)
    ]
    await world.until(lambda health: health["load"]["n_running"] > 0)
    kill(world.engine_pid, number)
    for voice, question, task in quick:
        assert await task == End(200, expected(voice, question))
    health = await world.health()
    assert f"signal {number.value}" in health["engine"]["reason"]


async def begin_streams(world: World, n_streams: int) -> list[asyncio.Task[End]]:
    """Streams that go on for long, each with some text at its client."""
    ends = []
    for index in range(n_streams):
        has_begun = asyncio.Event()
        prompt = f"capital of capital of {index}"
        ends.append(
            asyncio.create_task(
                ask_openai(world, prompt, stream=True, has_begun=has_begun, max_tokens=300, ignore_eos=True)
            )
        )
        begun = asyncio.create_task(has_begun.wait())
        await asyncio.wait((ends[-1], begun), timeout=30, return_when=asyncio.FIRST_COMPLETED)
        begun.cancel()
        assert has_begun.is_set(), f"a stream did not begin: {ends[-1]}, {await world.health()}"
    return ends


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("has_poison", [False, True], ids=["", "with a poison"])
async def test_eight_run_and_fifty_two_wait(world: World, number: signal.Signals, has_poison: bool) -> None:
    """Four streams that had begun get a typed end; all other answers come, right; only the poison is refused."""
    world.arm("step", "slow 0.1")
    streams = await begin_streams(world, 4)
    asked = [
        (voice, question, asyncio.create_task(ask_openai(world, question, voice=voice)))
        for voice, question in spread(56 - has_poison)
    ]
    await world.until(lambda health: health["requests"]["in_flight"] == 60 - has_poison)
    await world.until(lambda health: health["load"]["n_running"] == 8)
    poison = None
    if has_poison:
        world.arm("decode", f"abort if {POISON}")
        poison = asyncio.create_task(ask_openai(world, new_poison()))
        # It ends the engine itself once it is its turn; the signal below comes first.
    n_deaths = (await world.health())["engine"]["n_deaths"]
    struck_at = time.monotonic()
    kill(world.engine_pid, number)
    await world.until(lambda health: health["engine"]["n_deaths"] > n_deaths)
    seen_s = time.monotonic() - struck_at
    world.disarm_point("step")
    ready_s = seen_s + await world.until_ready()
    for end in await asyncio.gather(*streams):
        assert (end.status, end.is_broken) == (200, False)
        assert "the engine process ended while this request was running" in end.error
    for voice, question, task in asked:
        assert await task == End(200, expected(voice, question))
    if poison is not None:
        assert "ended twice while this request was running" in (await poison).error
    done_s = time.monotonic() - struck_at
    print(f"{number.name} poison={has_poison}: seen {seen_s:.1f} s, ready {ready_s:.1f} s, all answered {done_s:.1f} s")
    assert seen_s < 10
    assert (await world.health())["engine"]["n_deaths"] == n_deaths + (3 if has_poison else 1)


async def test_a_request_that_waits_over_a_replacement_and_a_death(world: World) -> None:
    """A request whose adapter's content went with the engine gets the error that it changed and may be asked again."""
    assert (await world.send("PUT", "/adapters/came", data=peft("shout")))[0] == 201
    world.arm("step", "slow 0.1")
    streams = await begin_streams(world, 8)
    waiting = asyncio.create_task(ask_openai(world, QUESTIONS[0], voice="came"))
    await world.until(lambda health: health["load"]["n_waiting"] == 1)
    assert (await world.send("PUT", "/adapters/came", data=peft("tag")))[0] == 200
    kill(world.engine_pid)
    assert await waiting == End(
        409, "", "adapter came was replaced or removed while the request waited; send the request again"
    )
    world.disarm()
    for end in await asyncio.gather(*streams):
        assert "the engine process ended while this request was running" in end.error
    assert await ask_openai(world, QUESTIONS[0], voice="came") == End(200, expected("tag", QUESTIONS[0]))
    assert (await world.send("DELETE", "/adapters/came"))[0] == 200


@pytest.mark.parametrize("fault", ["abort", "segfault", "hang", "stop"])
async def test_a_fault_in_a_batch_costs_no_answer(world: World, fault: str) -> None:
    """Whatever ends the engine once, the requests of its batch run again."""
    world.arm("decode", f"once {fault}")
    started = time.monotonic()
    answers = await asyncio.gather(*(ask_openai(world, question, voice=voice) for voice, question in spread(12)))
    assert answers == [End(200, expected(voice, question)) for voice, question in spread(12)]
    assert time.monotonic() - started < 30


async def test_only_the_request_that_ends_the_engine_is_refused(world: World) -> None:
    """The cause is known after two deaths: requests beside it are answered, and the same request is refused at once."""
    world.arm("decode", f"abort if {POISON}")
    n_deaths = (await world.health())["engine"]["n_deaths"]
    poison_text = new_poison()
    poison = asyncio.create_task(ask_openai(world, poison_text))
    others = [
        (voice, question, asyncio.create_task(ask_openai(world, question, voice=voice)))
        for voice, question in spread(20)
    ]
    end = await poison
    assert (end.status, end.error) == (
        400,
        "the engine process ended twice while this request was running; it is not run again",
    )
    for voice, question, task in others:
        assert await task == End(200, expected(voice, question))
    assert (await ask_openai(world, poison_text)).status == 400
    assert (await world.health())["engine"]["n_deaths"] == n_deaths + 2
