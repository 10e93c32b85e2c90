"""``/v1/responses`` over HTTP."""

import json

from aiohttp import ClientSession

from runtime.errors import EngineDied, UnsupportedGrammar
from runtime.generation import FinishReason
from tests.runtime.double import ScriptedEngine

PATH = "/v1/responses"
HI = {"model": "gemma-7b-it-lora", "input": "hi", "instructions": "Be brief.", "metadata": {"a": "b"}}


async def test_a_whole_response(client: ClientSession, engine: ScriptedEngine) -> None:
    """The text stands in a message; a response that was cut says so."""
    async with client.post(PATH, json=HI) as response:
        assert response.status == 200
        whole = await response.json()
    assert (whole["object"], whole["status"], whole["store"], whole["metadata"]) == (
        "response",
        "completed",
        False,
        {"a": "b"},
    )
    (item,) = whole["output"]
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "completed")
    assert item["content"] == [{"type": "output_text", "annotations": [], "logprobs": [], "text": "Hello world"}]
    assert whole["usage"]["total_tokens"] == 9
    assert engine.requests[0].prompt.text.startswith("<start_of_turn>user\nBe brief.\n\nhi<end_of_turn>")
    engine.reason = FinishReason.LENGTH
    async with client.post(PATH, json=HI | {"max_output_tokens": 2}) as response:
        cut = await response.json()
    assert (cut["status"], cut["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})


async def test_a_stream(client: ClientSession) -> None:
    """Events in their order, each with its name and number; the deltas join to the text of the last ones."""
    async with client.post(PATH, json=HI | {"stream": True}) as response:
        assert response.headers["Content-Type"] == "text/event-stream"
        blocks = (await response.text()).removesuffix("\n\n").split("\n\n")
    events = []
    for number, block in enumerate(blocks):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == number
        events.append(event)
    assert [event["type"].removeprefix("response.") for event in events] == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *("output_text.delta", "output_text.delta"),
        *("output_text.done", "content_part.done", "output_item.done", "completed"),
    ]
    assert "".join(event.get("delta", "") for event in events) == events[6]["text"] == "Hello world"
    assert events[-1]["response"]["output"] == [events[8]["item"]]
    assert events[-1]["response"]["usage"]["output_tokens"] == 2
    assert len({event["response"]["id"] for event in events if "response" in event}) == 1


async def test_errors(client: ClientSession, engine: ScriptedEngine) -> None:
    """Before the first event an error is an answer of its own, afterwards an event."""
    async with client.post(PATH, json=HI | {"previous_response_id": "resp_1"}) as response:
        error = (await response.json())["error"]
        assert (response.status, error["param"], error["code"]) == (
            400,
            "previous_response_id",
            "unsupported_parameter",
        )
    engine.script = [UnsupportedGrammar("Unimplemented keys")]
    async with client.post(PATH, json=HI | {"stream": True, "text": {"format": {"type": "json_object"}}}) as response:
        assert (response.status, (await response.json())["error"]["param"]) == (400, "text.format")
    engine.script = ["Hello", EngineDied("killed")]
    async with client.post(PATH, json=HI | {"stream": True}) as response:
        received = await response.content.readuntil(b'"error":{"message":"killed"')
        assert b"event: error\n" in received


async def test_nothing_is_stored(client: ClientSession) -> None:
    """Whatever is asked of a stored response is refused."""
    for path in ("/v1/responses/resp_1", "/v1/responses/resp_1/cancel", "/v1/responses/resp_1/input_items"):
        async with client.get(path) as response:
            assert response.status == 400
            assert "stores none" in (await response.json())["error"]["message"]
