"""AI Gateway's own endpoints."""

import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession

from runtime.cloudflare.wire import MODEL
from runtime.errors import EngineDied
from tests.runtime.conftest import Serve
from tests.runtime.double import READY, ScriptedEngine

COMPAT = "/v1/account/gateway/compat/chat/completions"
HI = [{"role": "user", "content": "hi"}]
STEP: dict[str, Any] = {"provider": "workers-ai", "endpoint": MODEL, "query": {"prompt": "hi"}}


async def test_compat(client: ClientSession) -> None:
    """The model carries its provider's name; answers and streams are those of ``ai/v1``."""
    async with client.post(COMPAT, json={"model": f"workers-ai/{MODEL}", "messages": HI}) as response:
        assert (await response.json())["choices"][0]["message"]["content"] == "Hello world"
    body = {"model": f"workers-ai/{MODEL}", "messages": HI, "stream": True}
    async with client.post(COMPAT, json=body) as response:
        assert (await response.read()).endswith(b"data: [DONE]\n\n")
    async with client.post(COMPAT, json={"model": "openai/gpt-4o", "messages": HI}) as response:
        assert (response.status, (await response.json())["errors"][0]["code"]) == (400, 5007)


async def test_the_first_step_that_succeeds_answers(client: ClientSession, engine: ScriptedEngine) -> None:
    """Steps of other providers and refused ones are passed over; the header says which one answered."""
    steps = [
        {"provider": "openai", "endpoint": "chat/completions", "query": {"model": "gpt-4o", "messages": HI}},
        STEP | {"query": {"prompt": ""}},
        STEP | {"query": {"prompt": "hi", "lora": "pirate"}},
        STEP,
    ]
    async with client.post("/v1/account/gateway", json=steps) as response:
        assert response.status == 200
        assert response.headers["cf-aig-step"] == "2"
        assert (await response.json())["result"]["response"] == "Hello world"
    assert len(engine.requests) == 1
    assert not engine.requests[0].blend.is_base


@pytest.mark.parametrize(
    "step", [STEP | {"endpoint": f"run/{MODEL}"}, STEP | {"query": {"messages": HI, "stream": True}}]
)
async def test_forms_of_a_step(client: ClientSession, step: dict[str, Any]) -> None:
    """The endpoint may be the model or its path, and a step may stream."""
    async with client.post("/v1/account/gateway/", json=[step]) as response:
        assert (response.status, response.headers["cf-aig-step"]) == (200, "0")
    chat = {"provider": "workers-ai", "endpoint": "v1/chat/completions", "query": {"model": MODEL, "messages": HI}}
    async with client.post("/v1/account/gateway", json=[chat]) as response:
        assert (await response.json())["object"] == "chat.completion"


@pytest.mark.parametrize(
    ("body", "code"), [({}, 5006), ([], 5006), ([5], 5006), ([STEP] * 17, 5006), ([STEP | {"endpoint": "@cf/x"}], 5007)]
)
async def test_refusals(client: ClientSession, body: Any, code: int) -> None:
    """The error of the last step is the answer, in the form of REST."""
    async with client.post("/v1/account/gateway", json=body) as response:
        assert (response.status, (await response.json())["errors"][0]["code"]) == (400, code)


async def test_a_token_may_travel_in_its_step(serve: Serve, tmp_path: Path) -> None:
    """The provider's token stands in the step; without one the step is refused."""
    (tmp_path / "tokens").write_text("secret\n")
    client = await serve(token_file=str(tmp_path / "tokens"))
    async with client.post("/v1/account/gateway", json=[STEP]) as response:
        assert (response.status, (await response.json())["errors"][0]["code"]) == (400, 9106)
    for name in ("Authorization", "authorization"):
        async with client.post("/v1/account/gateway", json=[STEP | {"headers": {name: "Bearer secret"}}]) as response:
            assert response.status == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (f"/client/v4/accounts/a/ai/run/{MODEL}", {"prompt": "hi"}),
        ("/client/v4/accounts/a/ai/v1/chat/completions", {"model": MODEL, "messages": HI}),
        (COMPAT, {"model": f"workers-ai/{MODEL}", "messages": HI}),
        ("/v1/account/gateway", [STEP | {"query": {"prompt": "hi"}}]),
    ],
)
async def test_a_request_that_will_not_wait(
    client: ClientSession, engine: ScriptedEngine, path: str, body: Any
) -> None:
    """``rejectIfBusy`` acts on REST and chats as on the binding, once every place is taken."""
    options = {"options": {"rejectIfBusy": True}}
    if isinstance(body, dict):
        asked: Any = body | options
    else:
        chat = {"provider": "workers-ai", "endpoint": "v1/chat/completions"}
        asked = [chat | {"query": {"model": MODEL, "messages": HI} | options}]
    async with client.post(path, data=json.dumps(asked)) as response:
        assert response.status == 200
    engine.n_in_flight = READY.model.n_parallel
    async with client.post(path, data=json.dumps(asked)) as response:
        assert (response.status, (await response.json())["errors"][0]["code"]) == (429, 3040)
    async with client.post(path, data=json.dumps(body)) as response:
        assert response.status == 200


async def test_a_stream_that_breaks_ends_the_list(client: ClientSession, engine: ScriptedEngine) -> None:
    """A step whose stream has begun is the answer, with its error as the last event; no later step is tried."""
    engine.script = ["Hello", EngineDied("killed")]
    steps = [STEP | {"query": {"prompt": "hi", "stream": True}}, STEP]
    async with client.post("/v1/account/gateway", json=steps) as response:
        received = await response.read()
    assert received.endswith(b'"AiError: Internal server error: killed","code":3043}],"success":false}\n\n')
    assert len(engine.requests) == 1
