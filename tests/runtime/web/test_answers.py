"""Answers whole and streamed: that each request has exactly one end."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import ClientSession

from runtime.engines.protocol import GenerationEvent
from runtime.generation import GenerationRequest
from runtime.messages import Started, Text
from tests.runtime.double import RESTARTED, ScriptedEngine

RUN = "/client/v4/accounts/a/ai/run/@cf/google/gemma-7b-it-lora"


class SilentEngine(ScriptedEngine):
    """Breaks its promise: its events stop without ``Finished``."""

    @asynccontextmanager
    async def generate(
        self,
        request: GenerationRequest,
        *,
        can_restart: bool = False,  # noqa: ARG002
    ) -> AsyncIterator[AsyncGenerator[GenerationEvent, None]]:
        async def play() -> AsyncGenerator[GenerationEvent, None]:
            yield Started(request.request_id, 7)
            for text in self.script:
                yield Text(request.request_id, str(text))

        yield play()


@pytest.fixture
def engine() -> ScriptedEngine:
    """The engine under the server of this file."""
    return SilentEngine(["Hello"])


async def test_an_engine_that_stops_without_a_word(client: ClientSession, engine: ScriptedEngine) -> None:
    """An engine that stops in the middle is an error, whole and streamed, and never an empty success."""
    async with client.post(RUN, json={"prompt": "hi"}) as response:
        assert (response.status, (await response.json())["errors"][0]["code"]) == (500, 3043)
    async with client.post(RUN, json={"prompt": "hi", "stream": True}) as response:
        received = await response.read()
        assert b"[DONE]" not in received
        assert b'"code":3043' in received
    engine.script = []
    async with client.post(RUN, json={"prompt": "hi", "stream": True}) as response:
        assert response.status == 500


class TestAnEngineThatBeginsAgain:
    """A process that ended in the middle of an answer: nothing of the first run may be seen."""

    @pytest.fixture
    def engine(self) -> ScriptedEngine:
        """Half an answer, the end of the process, a whole answer."""
        return ScriptedEngine(["half", RESTARTED, "whole"])

    async def test_a_whole_answer_is_that_of_the_second_run(
        self, client: ClientSession, engine: ScriptedEngine
    ) -> None:
        """The text of the first run is dropped."""
        async with client.post(RUN, json={"prompt": "hi"}) as response:
            assert (await response.json())["result"]["response"] == "whole"
        assert engine.can_restart

    async def test_a_stream_does_not_ask_for_it(self, client: ClientSession, engine: ScriptedEngine) -> None:
        """A stream does not ask to be begun again, since its client has the text."""
        async with client.post(RUN, json={"prompt": "hi", "stream": True}) as response:
            await response.read()
        assert not engine.can_restart
