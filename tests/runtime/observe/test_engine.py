"""What an observed engine tells of its answers."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from runtime.errors import EngineDied
from runtime.generation import BASE, GenerationRequest, Prompt, Usage
from runtime.messages import Text
from runtime.observe.engine import ObservedEngine
from runtime.observe.events import AnswerEnded, AnswerStarted, TokensCame
from tests.runtime.double import ScriptedEngine
from tests.runtime.observe.recorder import Recorder

REQUEST = GenerationRequest("r1", Prompt(()))


async def take_all(engine: ObservedEngine) -> list[str]:
    """The texts of one answer."""
    async with engine.generate(REQUEST) as events:
        return [event.text async for event in events if isinstance(event, Text)]


async def test_an_answer_is_reported_from_its_start_to_its_end() -> None:
    """The prompt, each text and the end are reported in order, with the counts that the engine gave."""
    recorder = Recorder()
    assert await take_all(ObservedEngine(ScriptedEngine(("Hello", " world")), recorder)) == ["Hello", " world"]
    started, first, second, ended = recorder.events
    assert started == AnswerStarted("r1", BASE, 7, 0, 0.0, 0.0)
    assert isinstance(first, TokensCame)
    assert first.is_first
    assert isinstance(second, TokensCame)
    assert not second.is_first
    assert isinstance(ended, AnswerEnded)
    assert (ended.outcome, ended.usage) == ("stop", Usage(7, 2))
    assert ended.first_token_s is not None
    assert 0 <= ended.first_token_s <= ended.total_s


async def test_an_answer_that_breaks_off_ends_with_the_code_of_its_error() -> None:
    """An answer whose engine dies is reported with the error's code and the tokens that had come."""
    recorder = Recorder()
    with pytest.raises(EngineDied):
        await take_all(ObservedEngine(ScriptedEngine(("Hello", EngineDied("gone"))), recorder))
    ended = recorder.events[-1]
    assert isinstance(ended, AnswerEnded)
    assert (ended.outcome, ended.usage) == ("engine_died", Usage(7, 1))


async def test_a_client_that_leaves_cancels_its_answer() -> None:
    """An answer that is left in mid-stream is reported as cancelled, and the engine below hears of it."""
    recorder, inner = Recorder(), ScriptedEngine(("Hello", asyncio.Event()))
    async with ObservedEngine(inner, recorder).generate(REQUEST) as events, aclosing(events):
        async for event in events:
            if isinstance(event, Text):
                break
    ended = recorder.events[-1]
    assert isinstance(ended, AnswerEnded)
    assert ended.outcome == "cancelled"
    assert inner.cancelled == ["r1"]


async def test_an_answer_without_text_has_no_first_token() -> None:
    """An answer that fails before its first text has no time to first token."""
    recorder = Recorder()
    with pytest.raises(EngineDied):
        await take_all(ObservedEngine(ScriptedEngine((EngineDied("gone"),)), recorder))
    (ended,) = recorder.events
    assert isinstance(ended, AnswerEnded)
    assert ended.first_token_s is None
