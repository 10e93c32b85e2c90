"""The child engine: every request ends exactly once, also when the process does not."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from runtime import messages, pipe
from runtime.config import EngineSettings
from runtime.engines.protocol import GenerationEvent, Restarted
from runtime.engines.states import EngineState
from runtime.engines.supervisor import ChildEngine
from runtime.errors import (
    ContextExceeded,
    EngineDied,
    EngineUnavailable,
    HarmfulRequest,
    InvalidAdapter,
    ModelLoadError,
    Overloaded,
)
from runtime.generation import FinishReason, GenerationRequest, Prompt, Segment, Usage

SCRIPT = Path(__file__).parent / "scripted_engine.py"
DIGEST = "a" * 64


def request(request_id: str, order: str) -> GenerationRequest:
    """A request whose prompt is an order to the scripted engine."""
    return GenerationRequest(request_id, Prompt((Segment(order, has_control_tokens=False),)))


async def ask(engine: ChildEngine, request_id: str, order: str) -> list[GenerationEvent]:
    """Every event of one request."""
    async with engine.generate(request(request_id, order)) as events:
        return [event async for event in events]


async def kill(engine: ChildEngine) -> None:
    """Kill the engine process, and wait for the next one."""
    assert engine.process_id is not None
    os.kill(engine.process_id, signal.SIGKILL)
    await until(lambda: engine.ready is None)
    await until(lambda: engine.ready is not None)


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until the condition holds; the test's own time limit is the bound."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 -- what is waited for happens in another process
            await asyncio.sleep(0.01)


@pytest.fixture
def heard(tmp_path: Path) -> Callable[[], list[messages.Message]]:
    """The commands that engines of this test were sent, over all restarts."""
    log = tmp_path / "heard"

    def read() -> list[messages.Message]:
        return [pipe.decode(line) for line in log.read_text().splitlines()]

    return read


@contextlib.asynccontextmanager
async def running(
    tmp_path: Path, model: str = "m.gguf", load_timeout_s: int = 60, **options: object
) -> AsyncIterator[ChildEngine]:
    """A client with a scripted child, not yet started."""
    command = (sys.executable, str(SCRIPT), str(tmp_path / "heard"))
    settings = EngineSettings(model=model, load_timeout_s=load_timeout_s)
    engine = ChildEngine(settings, **{"max_in_flight": 4, "command": command, **options})  # type: ignore[arg-type]
    try:
        yield engine
    finally:
        await engine.stop()


async def test_events_arrive_in_order_and_end(tmp_path: Path) -> None:
    """Started, the text, Finished; then nothing."""
    async with running(tmp_path) as engine:
        assert (await engine.start()).adapter_batching == "grouped"
        assert await ask(engine, "r", "say one two") == [
            messages.Started("r", 3),
            messages.Text("r", "one"),
            messages.Text("r", "two"),
            messages.Finished("r", FinishReason.STOP, Usage(3, 2)),
        ]
        assert engine.n_in_flight == 0


async def test_progress_of_loading_is_told(tmp_path: Path) -> None:
    """The function that draws the bar gets the fraction that is loaded."""
    seen: list[float] = []
    async with running(tmp_path, on_loading=seen.append) as engine:
        await engine.start()
    assert seen == [0.5]


async def test_before_the_start_nothing_is_served(tmp_path: Path) -> None:
    """A request before the start gets a typed error and does not hang."""
    async with running(tmp_path) as engine:
        assert engine.ready is None
        with pytest.raises(EngineUnavailable):
            await ask(engine, "r", "say one")


@pytest.mark.parametrize(
    ("model", "message"),
    [("missing.gguf", "no such file: missing.gguf"), ("silent.gguf", "the engine process ended with status 3")],
)
async def test_a_model_that_cannot_be_loaded_is_told_at_start(tmp_path: Path, model: str, message: str) -> None:
    """The start fails with the engine's own words, or its exit status, and the load is not tried again."""
    async with running(tmp_path, model) as engine:
        with pytest.raises(ModelLoadError) as error:
            await engine.start()
    assert str(error.value) == message


async def test_an_abort_before_it_is_ready_costs_only_the_lanes(
    tmp_path: Path, heard: Callable[[], list[messages.Message]]
) -> None:
    """The engine is started once more with grouped batches, unless mixed ones are asked for."""
    async with running(tmp_path, "lanes-abort.gguf") as engine:
        await engine.start()
        assert await ask(engine, "r", "say one")
    assert [load.settings.adapter_batching for load in heard() if isinstance(load, messages.Load)] == [
        "auto",
        "grouped",
    ]


async def test_a_change_of_batching_is_what_the_engine_tells_from_then_on(tmp_path: Path) -> None:
    """``/health`` reads the fact from the engine's last report, without another request."""
    async with running(tmp_path) as engine:
        ready = await engine.start()
        await ask(engine, "r", "mix")
        assert engine.ready == dataclasses.replace(ready, adapter_batching="mixed", batching_reason="proven")


async def test_a_refusal_is_the_class_its_code_names(tmp_path: Path) -> None:
    """A refusal has the class that its code names, and the engine goes on."""
    async with running(tmp_path) as engine:
        await engine.start()
        with pytest.raises(ContextExceeded, match="too long"):
            await ask(engine, "r", "fail")
        assert await ask(engine, "s", "say one")


@pytest.mark.parametrize("order", ["die", "babble"])
async def test_the_end_of_the_process_ends_every_request_once(tmp_path: Path, order: str) -> None:
    """Requests without text run again and are answered; the one that ends every engine is refused after two deaths."""
    async with running(tmp_path) as engine:
        await engine.start()
        first_process = engine.process_id
        others = [asyncio.create_task(ask(engine, f"o{i}", f"once {tmp_path / str(i)}")) for i in range(2)]
        with pytest.raises(HarmfulRequest, match="ended twice"):
            await ask(engine, "r", order)
        for task in others:
            assert isinstance((await task)[-1], messages.Finished)
        assert engine.process_id != first_process
        with pytest.raises(HarmfulRequest):
            await ask(engine, "again", order)
        assert await ask(engine, "r", "say again")
        assert engine.n_in_flight == 0


async def test_a_stream_that_had_begun_gets_an_error(tmp_path: Path) -> None:
    """A stream that had begun gets an error when the engine dies; a request that had only waited is answered."""
    async with running(tmp_path) as engine:
        await engine.start()
        async with engine.generate(request("stream", "begin one")) as events:
            assert [await anext(events), await anext(events)] == [
                messages.Started("stream", 2),
                messages.Text("stream", "one"),
            ]
            other = asyncio.create_task(ask(engine, "other", f"once {tmp_path / 'died'}"))
            with pytest.raises(EngineDied, match="ended while this request was running"):
                await anext(events)
        assert isinstance((await other)[-1], messages.Finished)


async def test_a_caller_that_can_begin_again_does(tmp_path: Path) -> None:
    """A caller that can begin again hears after its first text that all of it is void."""
    async with running(tmp_path) as engine:
        await engine.start()
        async with engine.generate(request("r", "begin one"), can_restart=True) as events:
            assert isinstance(await anext(events), messages.Started)
            assert await anext(events) == messages.Text("r", "one")
            assert engine.process_id is not None
            os.kill(engine.process_id, signal.SIGKILL)
            assert await anext(events) == Restarted("r")
            assert await anext(events) == messages.Started("r", 2)


async def test_a_request_waits_for_the_next_engine(tmp_path: Path) -> None:
    """A request that comes while the engine starts again is answered."""
    async with running(tmp_path) as engine:
        await engine.start()
        assert engine.process_id is not None
        os.kill(engine.process_id, signal.SIGKILL)
        await until(lambda: engine.status.state is EngineState.RESTARTING)
        assert engine.ready is None
        assert "signal 9" in engine.status.reason
        assert len(await ask(engine, "s", "say one")) == 3
        assert (engine.status.state, engine.status.n_deaths, engine.status.n_starts) == (EngineState.READY, 1, 2)


async def test_no_caller_waits_for_ever(tmp_path: Path) -> None:
    """An engine that does not come up in time is said to be unavailable."""
    async with running(tmp_path, "slow.gguf", ready_timeout_s=0.2) as engine:
        starting = asyncio.create_task(engine.start())
        with pytest.raises(EngineUnavailable, match="being loaded"):
            await ask(engine, "r", "say one")
        assert engine.n_in_flight == 0
        starting.cancel()


async def test_every_engine_that_becomes_ready_is_an_event(
    tmp_path: Path, heard: Callable[[], list[messages.Message]]
) -> None:
    """What is sent in its callback reaches the engine before any request that waited for it."""
    addition = messages.AddAdapter(DIGEST, str(tmp_path / "good.gguf"))
    answers: list[Awaitable[None]] = []
    async with running(tmp_path) as engine:
        engine.on_ready(lambda: answers.append(engine.add_adapter(DIGEST, tmp_path / "good.gguf")))
        early = asyncio.create_task(ask(engine, "early", "say one"))
        await engine.start()
        await early
        await kill(engine)
        await ask(engine, "s", "say one")
        await asyncio.gather(*answers)
    commands = [command for command in heard() if not isinstance(command, messages.Load)]
    assert commands[:2] == [addition, messages.Generate(request("early", "say one"))]
    assert commands[-2:] == [addition, messages.Generate(request("s", "say one"))]


async def test_leaving_early_cancels(tmp_path: Path, heard: Callable[[], list[messages.Message]]) -> None:
    """A client that leaves early cancels its request at the engine, and its place in the queue is free."""
    async with running(tmp_path) as engine:
        await engine.start()
        async with engine.generate(request("r", "wait")):
            assert engine.n_in_flight == 1
        assert engine.n_in_flight == 0
        await ask(engine, "s", "say done")
    assert messages.Cancel("r") in heard()


async def test_a_finished_request_is_not_cancelled(tmp_path: Path, heard: Callable[[], list[messages.Message]]) -> None:
    """A request that has ended is not cancelled, even if its end was not read from the queue."""
    async with running(tmp_path) as engine:
        await engine.start()
        async with engine.generate(request("r", "say one two")):
            await until(lambda: engine.n_in_flight == 0)
        await ask(engine, "s", "say done")
    assert not any(isinstance(message, messages.Cancel) for message in heard())


async def test_the_queue_is_bounded(tmp_path: Path) -> None:
    """A request beyond the limit is refused before anything is sent."""
    async with running(tmp_path, max_in_flight=1) as engine:
        await engine.start()
        async with engine.generate(request("r", "wait")):
            with pytest.raises(Overloaded):
                await ask(engine, "s", "say one")
        assert await ask(engine, "s", "say one")


async def test_an_adapter_is_refused_with_the_engines_reason(tmp_path: Path) -> None:
    """The answer is an error of the class that the engine names."""
    async with running(tmp_path) as engine:
        await engine.start()
        with pytest.raises(InvalidAdapter, match="rank 0"):
            await engine.add_adapter(DIGEST, tmp_path / "bad.gguf")


async def test_an_adapter_is_not_sent_to_an_engine_that_is_not_ready(
    tmp_path: Path, heard: Callable[[], list[messages.Message]]
) -> None:
    """Adding is an error that says so; removing is done at once, since a new engine knows no adapter."""
    async with running(tmp_path) as engine:
        with pytest.raises(EngineUnavailable):
            await engine.add_adapter(DIGEST, tmp_path / "good.gguf")
        await engine.remove_adapter(DIGEST)
        await engine.start()
    assert [type(message).__name__ for message in heard()] == ["Load"]


async def test_an_adapter_that_was_offered_when_the_engine_died(tmp_path: Path) -> None:
    """An offer that has no answer when the engine dies fails with EngineDied, so that it is made again."""
    async with running(tmp_path) as engine:
        await engine.start()
        answer = engine.add_adapter(DIGEST, tmp_path / "never.gguf")
        await kill(engine)
        with pytest.raises(EngineDied):
            await answer


async def test_a_removal_ends_when_the_engine_has_no_more_use_for_it(tmp_path: Path) -> None:
    """A removal ends when no request uses the adapter, when it is added again, and when the engine dies."""
    async with running(tmp_path) as engine:
        await engine.start()
        await engine.add_adapter(DIGEST, tmp_path / "good.gguf")
        await engine.remove_adapter(DIGEST)
        await engine.add_adapter(DIGEST, tmp_path / "used.gguf")
        removal = asyncio.ensure_future(engine.remove_adapter(DIGEST))
        await ask(engine, "s", "say one")
        assert not removal.done()
        await engine.add_adapter(DIGEST, tmp_path / "used.gguf")
        await removal
        removal = asyncio.ensure_future(engine.remove_adapter(DIGEST))
        await kill(engine)
        await removal


async def test_a_hung_engine_is_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An engine with requests that is silent for longer than it announced is killed; a request without one waits."""
    async with running(tmp_path, min_quiet_s=0.3) as engine:
        await engine.start()
        assert engine.process_id is not None
        os.kill(engine.process_id, signal.SIGSTOP)
        assert isinstance((await ask(engine, "r", "say one"))[-1], messages.Finished)
    assert "the engine process hung: it said nothing for" in caplog.text
    assert engine.status.n_deaths == 1


async def test_a_hang_in_mid_stream_is_seen(tmp_path: Path) -> None:
    """An engine that hangs after it has sent text is found, too."""
    async with running(tmp_path, min_quiet_s=0.3) as engine:
        await engine.start()
        with pytest.raises(EngineDied):
            await ask(engine, "r", "begin one two")


async def test_a_hang_while_loading_is_seen(tmp_path: Path) -> None:
    """An engine whose loading stands still is ended; under ``auto`` the next start is one without lanes."""
    async with running(tmp_path, "stuck.gguf", load_timeout_s=6) as engine:
        assert "hung: it said nothing for 6 s while it loaded" in (await engine.start()).batching_reason
        assert engine.status.state is EngineState.DEGRADED


async def test_rest_before_a_request_is_not_counted_as_a_hang(tmp_path: Path) -> None:
    """A request to an engine that has rested gets the whole time for its first event."""
    timeout_s = 0.5
    now = asyncio.get_running_loop().time
    async with running(tmp_path, min_quiet_s=timeout_s) as engine:
        await engine.start()
        rested_until = now() + 2 * timeout_s
        await until(lambda: now() > rested_until)
        asked_at = now()
        async with engine.generate(request("r", "wait")):
            await until(lambda: engine.status.n_deaths == 1)
        assert now() - asked_at >= timeout_s


async def test_an_earlier_death_shortens_no_later_wait(tmp_path: Path) -> None:
    """The time limit of requests that wait counts from the last death."""
    async with running(tmp_path, ready_timeout_s=2.5) as engine:
        await engine.start()
        for number in range(4):
            await kill(engine)
            assert isinstance((await ask(engine, f"r{number}", "say one"))[-1], messages.Finished)


async def test_a_file_that_is_gone_is_said_at_once(tmp_path: Path) -> None:
    """After a failed restart requests are refused with the time of the next attempt, and served once it succeeds."""
    async with running(tmp_path, "gone-later.gguf") as engine:
        await engine.start()
        (tmp_path / "gone").touch()
        assert engine.process_id is not None
        os.kill(engine.process_id, signal.SIGKILL)
        await until(lambda: engine.status.state is EngineState.FAILED)
        with pytest.raises(EngineUnavailable, match="cannot be loaded; the next attempt is made in") as error:
            await ask(engine, "r", "say one")
        assert error.value.retry_after_s >= 1
        assert engine.status.reason == "no such file: gone-later.gguf"
        (tmp_path / "gone").unlink()
        await until(lambda: engine.ready is not None)
        assert await ask(engine, "r", "say one")


async def test_an_engine_that_cannot_be_started_again_is_tried_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A failed restart, as when memory is short, is tried again, and may succeed."""
    command = [sys.executable, str(SCRIPT), str(tmp_path / "heard")]
    async with running(tmp_path, command=command) as engine:
        await engine.start()
        command[0] = str(tmp_path / "missing")
        assert engine.process_id is not None
        os.kill(engine.process_id, signal.SIGKILL)
        await until(lambda: "cannot be started" in caplog.text)
        command[0] = sys.executable
        await until(lambda: engine.ready is not None)
        assert await ask(engine, "s", "say again")


async def test_an_engine_that_cannot_be_started_at_all_is_told(tmp_path: Path) -> None:
    """The start fails with the system's error if no process can be started."""
    async with running(tmp_path, command=(str(tmp_path / "missing"),)) as engine:
        with pytest.raises(ModelLoadError, match="cannot be started: No such file"):
            await engine.start()


async def test_stopping_tells_those_who_wait_and_ends_the_process(tmp_path: Path) -> None:
    """Requests that wait get an error when the server stops, and the engine process is gone."""
    async with running(tmp_path) as engine:
        await engine.start()
        process_id = engine.process_id
        waiting = asyncio.create_task(ask(engine, "r", "wait"))
        await until(lambda: engine.n_in_flight == 1)
        await engine.stop()
        with pytest.raises(EngineUnavailable, match="shutting down"):
            await waiting
    assert process_id is not None
    with pytest.raises(ProcessLookupError):
        os.kill(process_id, 0)
