"""Answers whole and streamed: that each request has exactly one end."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import ClientPayloadError, ClientSession

from runtime.engines.protocol import GenerationEvent
from runtime.generation import GenerationRequest
from runtime.messages import Started, Text
from tests.runtime.double import ScriptedEngine

RUN = "/client/v4/accounts/a/ai/run/@cf/google/gemma-7b-it-lora"


class SilentEngine(ScriptedEngine):
    """Breaks its promise: its events stop without ``Finished``."""

    @asynccontextmanager
    async def generate(self, request: GenerationRequest) -> AsyncIterator[AsyncGenerator[GenerationEvent, None]]:
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
    """It is an error, whole and streamed, before and after the first piece; never an empty success."""
    async with client.post(RUN, json={"prompt": "hi"}) as response:
        assert (response.status, (await response.json())["errors"][0]["code"]) == (500, 3043)
    async with client.post(RUN, json={"prompt": "hi", "stream": True}) as response:
        with pytest.raises(ClientPayloadError):
            await response.read()
    engine.script = []
    async with client.post(RUN, json={"prompt": "hi", "stream": True}) as response:
        assert response.status == 500
