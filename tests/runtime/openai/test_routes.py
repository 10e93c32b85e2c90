"""``/v1`` over HTTP."""

import asyncio
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession

from runtime.adapters.store import Store
from runtime.errors import EngineDied, Overloaded, UnsupportedGrammar
from runtime.generation import BASE, Blend, BlendMember, FinishReason
from tests.runtime.conftest import PIRATE, PIRATE_FILE, Serve, put
from tests.runtime.double import ScriptedEngine

CHAT = "/v1/chat/completions"
HI = {"model": "gemma-7b-it-lora", "messages": [{"role": "user", "content": "hi"}]}
PIRATES = Blend((BlendMember(PIRATE_FILE.digest),))
HALF = Blend((BlendMember(PIRATE_FILE.digest, 0.5),))


async def test_chat(client: ClientSession, engine: ScriptedEngine) -> None:
    """A chat goes through the template and may use the whole context; the answer says why it ended."""
    engine.reason = FinishReason.LENGTH
    async with client.post(CHAT, json=HI | {"stop": ["x"]}) as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "application/json"
        answer = await response.json()
    assert answer["choices"][0]["message"]["content"] == "Hello world"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["total_tokens"] == 9
    (request,) = engine.requests
    assert request.prompt.text == "<start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n"
    assert (request.max_tokens, request.stop) == (512, ("x",))


async def test_chat_stream(client: ClientSession) -> None:
    """Chunks, and usage last where it was asked for."""
    async with client.post(CHAT, json=HI | {"stream": True, "stream_options": {"include_usage": True}}) as response:
        assert response.headers["Content-Type"] == "text/event-stream"
        events = (await response.read()).decode().removesuffix("\n\n").split("\n\n")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    texts = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk["choices"]]
    assert "".join(texts) == "Hello world"
    assert chunks[-1]["usage"]["total_tokens"] == 9
    assert events[-1] == "data: [DONE]"
    assert len({chunk["id"] for chunk in chunks}) == 1


async def test_completions(client: ClientSession, engine: ScriptedEngine) -> None:
    """A plain prompt goes in as it stands; control tokens in it are tokens."""
    async with client.post("/v1/completions", json={"model": "gemma-7b-it-lora", "prompt": "<bos>hi"}) as response:
        assert (await response.json())["choices"][0]["text"] == "Hello world"
    (request,) = engine.requests
    assert [(segment.text, segment.has_control_tokens) for segment in request.prompt.segments] == [("<bos>hi", True)]
    assert request.max_tokens == 16
    async with client.post(
        "/v1/completions", json={"model": "gemma-7b-it-lora", "prompt": "hi", "stream": True}
    ) as response:
        assert (await response.read()).endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("fields", "blend"),
    [
        ({}, BASE),
        ({"model": "@cf/google/gemma-7b-it-lora"}, BASE),
        ({"model": "gemma-7b-it-lora:pirate"}, PIRATES),
        ({"model": f"gemma-7b-it-lora:{PIRATE.id}"}, PIRATES),
        ({"lora": "pirate"}, PIRATES),
        ({"model": "gemma-7b-it-lora:pirate", "lora": "pirate"}, PIRATES),
        ({"model": "gemma-7b-it-lora:pirate:0.5"}, HALF),
        ({"model": f"gemma-7b-it-lora:{PIRATE.id}:0.5", "lora": []}, HALF),
        ({"lora": "pirate:0.5"}, HALF),
        ({"lora": [{"name": "pirate", "scale": 0.5}]}, HALF),
        ({"lora": [{"id": PIRATE.id, "scale": 0.5}]}, HALF),
        ({"lora": "pirate:0"}, BASE),
    ],
)
async def test_adapters(client: ClientSession, engine: ScriptedEngine, fields: dict[str, Any], blend: Blend) -> None:
    """An adapter is a model, or the key ``lora``."""
    async with client.post(CHAT, json=HI | fields) as response:
        assert response.status == 200
    assert engine.requests[0].blend == blend


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"model": "gpt-4o"}, 404, "model_not_found"),
        ({"model": None}, 404, "model_not_found"),
        ({"model": "gemma-7b-it-lora:nobody"}, 404, "model_not_found"),
        ({"lora": "nobody"}, 404, "model_not_found"),
        ({"model": "gemma-7b-it-lora:pirate", "lora": "shout"}, 400, "invalid_value"),
        ({"model": "gemma-7b-it-lora:pirate", "lora": "pirate:0.5"}, 400, "invalid_value"),
        ({"model": "gemma-7b-it-lora:pirate:big"}, 400, None),
        ({"model": "gemma-7b-it-lora:pirate+pirate"}, 400, None),
        ({"model": "gemma-7b-it-lora:pirate+nobody"}, 404, "model_not_found"),
        ({"lora": "pirate:nan"}, 400, None),
        ({"lora": ["pirate"]}, 400, None),
        ({"lora": {"name": "pirate"}}, 400, None),
        ({"lora": "\ud800"}, 404, "model_not_found"),
        ({"model": "\ud800"}, 404, "model_not_found"),
        ({"\ud800": 1}, 400, "unknown_parameter"),
        ({"tool_choice": "required"}, 400, "unsupported_parameter"),
        ({"n": 129}, 400, "invalid_value"),
        ({"messages": []}, 400, "invalid_value"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, None),
    ],
)
async def test_refusals(
    client: ClientSession, engine: ScriptedEngine, fields: dict[str, Any], status: int, code: str | None
) -> None:
    """A bad request never reaches the engine."""
    async with client.post(CHAT, data=json.dumps(HI | fields)) as response:
        assert response.status == status
        assert (await response.json())["error"]["code"] == code
    assert engine.requests == []


async def test_choices(client: ClientSession, engine: ScriptedEngine) -> None:
    """Each prompt is answered ``n`` times; seeds follow each other, so that choices differ and repeat."""
    body = {"model": "gemma-7b-it-lora", "prompt": ["a", [5, 6]], "n": 2, "seed": 7, "logit_bias": {"5": 1}}
    async with client.post("/v1/completions", json=body) as response:
        answer = await response.json()
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == [(n, "Hello world") for n in range(4)]
    assert answer["usage"]["prompt_tokens"] == 14
    requests = sorted(engine.requests, key=lambda request: request.request_id)
    assert [(one.prompt.text, one.prompt.tokens, one.sampling.seed) for one in requests] == [
        ("a", (), 7),
        ("a", (), 8),
        ("", (5, 6), 7),
        ("", (5, 6), 8),
    ]
    assert len({request.request_id for request in requests}) == 4
    async with client.post(CHAT, json=HI | {"n": 3, "stream": True}) as response:
        events = (await response.text()).split("\n\n")[:-2]
    choices = [choice for event in events for choice in json.loads(event.removeprefix("data: "))["choices"]]
    texts = {n: "".join(one["delta"].get("content", "") for one in choices if one["index"] == n) for n in range(3)}
    assert texts == dict.fromkeys(range(3), "Hello world")


async def test_echo(client: ClientSession, engine: ScriptedEngine) -> None:
    """The prompt stands before the answer; its logprobs are asked of the engine where they are wanted."""
    body = {"model": "gemma-7b-it-lora", "prompt": "Say: ", "echo": True, "max_tokens": 0}
    async with client.post("/v1/completions", json=body) as response:
        assert (await response.json())["choices"][0]["text"] == "Say: Hello world"
    async with client.post("/v1/completions", json=body | {"logprobs": 0, "stream": True}) as response:
        assert "Say: " in await response.text()
    assert [(one.scores_prompt, one.n_logprobs) for one in engine.requests] == [(False, None), (True, 0)]


async def test_ignored_keys_are_named(client: ClientSession) -> None:
    """The answer says which keys changed nothing, streamed or whole."""
    for more in ({}, {"stream": True}):
        async with client.post(CHAT, json=HI | {"keep_alive": 5, "num_ctx": 4096, "tools": [{}], **more}) as response:
            assert response.headers["x-gemlane-ignored"] == "keep_alive, num_ctx, tools"
    async with client.post(CHAT, json=HI) as response:
        assert "x-gemlane-ignored" not in response.headers


async def test_a_grammar_that_cannot_be_enforced_names_its_key(client: ClientSession, engine: ScriptedEngine) -> None:
    """The engine says what is wrong, the route where it stood; nothing has been sent before."""
    engine.script = [UnsupportedGrammar('Unimplemented keys: ["uniqueItems"]')]
    for more in ({}, {"stream": True}):
        body = HI | {"response_format": {"type": "json_schema", "json_schema": {"schema": {"uniqueItems": True}}}}
        async with client.post(CHAT, json=body | more) as response:
            assert response.status == 400
            error = (await response.json())["error"]
        assert error["param"] == "response_format"
        assert error["code"] == "unsupported_grammar"
        assert error["message"] == 'response_format: Unimplemented keys: ["uniqueItems"]'


async def test_headers_go_out_with_acceptance(client: ClientSession, engine: ScriptedEngine) -> None:
    """A stream's headers and the role come at once, while the prompt is still being computed."""
    gate = asyncio.Event()
    engine.script = [gate, "Hello"]
    async with client.post(CHAT, json=HI | {"stream": True}) as response:
        assert b'"role":"assistant"' in await response.content.readuntil(b"\n\n")
        gate.set()
        assert (await response.read()).endswith(b"data: [DONE]\n\n")


async def test_other_paths_and_methods(client: ClientSession) -> None:
    """Unknown paths and methods are refused in OpenAI's words."""
    async with client.post("/v1/embeddings", json={}) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (404, "unknown_url")
    async with client.get(CHAT) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (405, "method_not_supported")


async def test_overload_says_when_to_come_back(client: ClientSession, engine: ScriptedEngine) -> None:
    """OpenAI's clients wait as long as ``Retry-After`` says."""
    engine.script = [Overloaded("full")]
    async with client.post(CHAT, json=HI | {"stream": True}) as response:
        assert response.status == 429
        assert response.headers["Retry-After"] == "1"


async def test_a_stream_that_breaks_says_why(client: ClientSession, engine: ScriptedEngine) -> None:
    """The last event is the error, there is no ``[DONE]``, and the body ends properly, so that browsers read it."""
    engine.script = ["Hello", EngineDied("killed")]
    async with client.post(CHAT, json=HI | {"stream": True}) as response:
        events = (await response.read()).decode().strip().split("\n\n")
    assert json.loads(events[-1].removeprefix("data: "))["error"]["message"] == "killed"
    assert "[DONE]" not in "".join(events)


async def test_a_name_that_a_string_cannot_hold_is_listed_by_its_id(client: ClientSession, store: Store) -> None:
    """Every listed model can be asked for as it is listed."""
    new = dataclasses.replace(PIRATE, id="0f1e", name="a:b+c")
    await put(store, new, dataclasses.replace(PIRATE_FILE, digest="b" * 64))
    async with client.get("/v1/models") as response:
        names = [model["id"] for model in (await response.json())["data"]]
    assert names == ["gemma-7b-it-lora", "gemma-7b-it-lora:0f1e", "gemma-7b-it-lora:pirate"]
    for name in names:
        async with client.post(CHAT, json=HI | {"model": name}) as response:
            assert response.status == 200


async def test_models(client: ClientSession) -> None:
    """The base model and its adapters, together and one by one, under every name that a chat takes."""
    async with client.get("/v1/models") as response:
        models = (await response.json())["data"]
    assert [model["id"] for model in models] == ["gemma-7b-it-lora", "gemma-7b-it-lora:pirate"]
    assert [(model["root"], model["parent"]) for model in models] == [
        ("gemma-7b-it-lora", None),
        ("pirate", "gemma-7b-it-lora"),
    ]
    for name in (
        *("gemma-7b-it-lora", "gemma-7b-it-lora:pirate", "@cf/google/gemma-7b-it-lora"),
        *(f"gemma-7b-it-lora:{PIRATE.id}", "gemma-7b-it-lora:pirate:0.5"),
    ):
        async with client.get(f"/v1/models/{name}") as response:
            assert (await response.json())["id"] == name
    for name in ("gpt-4o", "gemma-7b-it-lora:nobody", "gemma-7b-it-lora:pirate:x"):
        async with client.get(f"/v1/models/{name}") as response:
            error = (await response.json())["error"]
            assert (response.status, error["code"]) == (404, "model_not_found")
            assert "gemma-7b-it-lora:pirate" in error["message"]


async def test_tokens(serve: Serve, tmp_path: Path) -> None:
    """Whatever is wrong with the token, OpenAI's clients see a 401."""
    (tmp_path / "tokens").write_text("secret\n")
    client = await serve(token_file=str(tmp_path / "tokens"))
    for headers in ({}, {"Authorization": "x"}, {"Authorization": "Bearer wrong"}):
        async with client.get("/v1/models", headers=headers) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (401, "invalid_api_key")
    async with client.get("/v1/models", headers={"Authorization": "Bearer secret"}) as response:
        assert response.status == 200
