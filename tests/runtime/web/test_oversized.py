"""Bodies that are too large in some way are refused before they cost much."""

import io
import json
import time
from typing import Any

import pytest
from aiohttp import ClientSession

from runtime.errors import RequestTooLarge
from runtime.web.body import MAX_COLONS, MAX_COMMAS, parse_json
from tests.runtime.double import ScriptedEngine

MODEL = "gemma-7b-it-lora"
MESSAGE = {"role": "user", "content": "hi"}
RUN = "/client/v4/accounts/a/ai/run/@cf/google/gemma-7b-it-lora"
CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
WORKERS_CHAT = "/client/v4/accounts/a/ai/v1/chat/completions"


@pytest.mark.parametrize("body", [b"{" + b'"a":1,' * MAX_COLONS + b'"b" : 1}', b"[" + b"1," * (MAX_COMMAS + 1) + b"1]"])
def test_more_members_or_items_than_a_request_has_are_not_parsed(body: bytes) -> None:
    """Counting costs a millisecond where parsing would cost hundreds."""
    began = time.perf_counter()
    with pytest.raises(RequestTooLarge):
        parse_json(body)
    assert time.perf_counter() - began < 0.1


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (CHAT, {"model": MODEL, "messages": [MESSAGE] * 100_000}, 413),
        (RUN, {"messages": [MESSAGE] * 100_000}, 413),
        (CHAT, {"model": MODEL, "messages": [MESSAGE], **{f"k{n}": 1 for n in range(300_000)}}, 413),
        (CHAT, {"model": MODEL, "messages": [MESSAGE] * 2000}, 400),
        ("/v1/responses", {"model": MODEL, "input": [MESSAGE] * 2000}, 400),
        (RUN, {"messages": [MESSAGE] * 2000}, 400),
        (
            "/client/v4/accounts/a/ai/v1/chat/completions",
            {"model": f"@cf/google/{MODEL}", "messages": [MESSAGE] * 2000},
            400,
        ),
        (CHAT, {"model": MODEL, "messages": [{"role": "user", "content": "hi " * 1_000_000}]}, 400),
        (TEXT, {"model": MODEL, "prompt": [7] * 100_000}, 400),
        (TEXT, {"model": MODEL, "prompt": ["hi", "hi " * 1_000_000]}, 400),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_an_oversized_conversation_never_reaches_the_engine(
    client: ClientSession, engine: ScriptedEngine, path: str, body: dict[str, Any], status: int
) -> None:
    """The number of messages, characters or ids says that it cannot fit; the template is never filled."""
    async with client.post(path, data=io.BytesIO(json.dumps(body).encode())) as response:
        assert response.status == status
        text = await response.text()
    assert "at most" in text
    assert engine.requests == []


async def test_as_much_as_fits_is_asked(client: ClientSession, engine: ScriptedEngine) -> None:
    """A conversation that may fit goes to the engine, which alone can count its tokens."""
    async with client.post(CHAT, json={"model": MODEL, "messages": [MESSAGE] * 100}) as response:
        assert response.status == 200
    assert len(engine.requests) == 1
