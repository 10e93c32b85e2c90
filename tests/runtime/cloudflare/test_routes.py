"""The REST surface over HTTP: paths, content types, bodies, headers, errors."""

import asyncio
import io
import json
import re
import uuid
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession
from yarl import URL

from runtime.errors import DecodeError, EngineDied, Overloaded
from runtime.generation import BASE, Blend, BlendMember, Sampling
from tests.runtime.conftest import PIRATE, PIRATE_FILE, Serve
from tests.runtime.double import ScriptedEngine

ACCOUNT = "/client/v4/accounts/0123456789abcdef0123456789abcdef/ai"
RUN = f"{ACCOUNT}/run/@cf/google/gemma-7b-it-lora"
PIRATES = Blend((BlendMember(PIRATE_FILE.digest),))
HALF = Blend((BlendMember(PIRATE_FILE.digest, 0.5),))


async def test_curl_of_the_model_page(client: ClientSession, engine: ScriptedEngine) -> None:
    """The page's own curl, form content type and textual ``raw`` included."""
    body = '{\n"prompt": "tell me a story",\n"raw": "true",\n"lora": "pirate"\n}'
    headers = {"Authorization": "Bearer token", "Content-Type": "application/x-www-form-urlencoded"}
    async with client.post(RUN, data=body, headers=headers) as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "application/json"
        assert await response.read() == (
            b'{"result":{"response":"Hello world","usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9}},'
            b'"success":true,"errors":[],"messages":[]}'
        )
    (request,) = engine.requests
    assert request.prompt.text == "tell me a story"
    assert request.blend == PIRATES
    assert request.max_tokens == 256


@pytest.mark.parametrize("model", ["@cf/google/gemma-7b-it-lora", "@cf%2Fgoogle%2Fgemma-7b-it-lora"])
@pytest.mark.parametrize("slash", ["", "/"])
async def test_paths(client: ClientSession, model: str, slash: str) -> None:
    """The model's id comes plain or encoded, the path with or without a slash at its end."""
    async with client.post(URL(f"{ACCOUNT}/run/{model}{slash}", encoded=True), data=b'{"prompt":"hi"}') as response:
        assert response.status == 200


async def test_ai_gateway(client: ClientSession, engine: ScriptedEngine) -> None:
    """The paths of Cloudflare's AI Gateway, for clients whose host name is all that was changed."""
    gateway = "/v1/account/gateway/workers-ai"
    async with client.post(f"{gateway}/@cf/google/gemma-7b-it-lora", data=b'{"prompt":"hi"}') as response:
        assert (await response.json())["result"]["response"] == "Hello world"
    chat = {"model": "@cf/google/gemma-7b-it-lora", "messages": [{"role": "user", "content": "hi"}]}
    async with client.post(f"{gateway}/v1/chat/completions", json=chat) as response:
        assert (await response.json())["choices"][0]["message"]["content"] == "Hello world"
    async with client.post(f"{gateway}/@cf/x", data=b'{"prompt":"hi"}') as response:
        assert (response.status, (await response.json())["errors"][0]["code"]) == (400, 5007)
    assert len(engine.requests) == 2


async def test_headers(client: ClientSession, engine: ScriptedEngine) -> None:
    """Every answer carries its id, a UUID that the engine knows too; a success says what it cost."""
    async with client.post(RUN, data=b'{"prompt":"hi"}') as response:
        request_id = response.headers["cf-ai-req-id"]
        assert str(uuid.UUID(request_id)) == request_id == engine.requests[0].request_id
        assert response.headers["cf-ai-neurons"] == "0.00"
        assert re.fullmatch(r"[0-9a-f]{16}-[A-Z]{3}", response.headers["cf-ray"])
        assert response.headers["Server"] == "gemlane"
    async with client.post(RUN, data=b"{}") as response:
        assert "cf-ai-neurons" not in response.headers
        assert f"({response.headers['cf-ai-req-id']})" in (await response.json())["errors"][0]["message"]


async def test_stream(client: ClientSession) -> None:
    """The native stream: one event a piece, usage, the end; exactly this content type."""
    async with client.post(RUN, data=b'{"prompt":"hi","stream":true}') as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "text/event-stream"
        events = (await response.read()).decode().split("\n\n")
    values = [json.loads(event.removeprefix("data: ")) for event in events[:3]]
    assert [value["response"] for value in values] == ["Hello", " world", ""]
    assert values[2]["usage"] == {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    assert events[3:] == ["data: [DONE]", ""]


@pytest.mark.parametrize(
    ("query", "fields", "blend"),
    [
        ("", {}, BASE),
        ("", {"lora": ""}, BASE),
        ("", {"lora": "pirate"}, PIRATES),
        ("?lora=pirate", {}, PIRATES),
        ("?lora=pirate:0.5", {}, HALF),
        ("", {"lora": "pirate:0.5"}, HALF),
        ("", {"lora": [{"name": "pirate", "scale": 0.5}]}, HALF),
        (f"?lora={PIRATE.id}", {"lora": ""}, PIRATES),
    ],
)
async def test_lora(
    client: ClientSession, engine: ScriptedEngine, query: str, fields: dict[str, Any], blend: Blend
) -> None:
    """An adapter is chosen by name or id, in the body or in the URL; none is the base model."""
    for body in ({"prompt": "hi"}, {"messages": [{"role": "user", "content": "hi"}]}):
        async with client.post(RUN + query, json=body | fields) as response:
            assert response.status == 200
        assert engine.requests[-1].blend == blend


async def test_every_sampling_parameter_reaches_the_engine(client: ClientSession, engine: ScriptedEngine) -> None:
    """The engine gets every sampling parameter of a request."""
    values: dict[str, Any] = {
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 7,
        "seed": 42,
        "repetition_penalty": 1.5,
        "frequency_penalty": 0.25,
        "presence_penalty": 2,
    }
    async with client.post(RUN, json={"prompt": "hi", "max_tokens": 9} | values) as response:
        assert response.status == 200
    assert engine.requests[0].sampling == Sampling(**values)
    assert engine.requests[0].max_tokens == 9


@pytest.mark.parametrize(
    ("setting", "text"), [("fold", "user\nS\n\nU<end_of_turn>"), ("drop", "<start_of_turn>user\nU<end_of_turn>")]
)
async def test_system_role(serve: Serve, engine: ScriptedEngine, setting: str, text: str) -> None:
    """The setting says what becomes of a system message."""
    client = await serve(system_role=setting)
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    async with client.post(RUN, json={"messages": messages}) as response:
        assert response.status == 200
    assert text in engine.requests[0].prompt.text


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        (RUN, b"{}", 400, 5006),
        (RUN, b"{", 400, 5006),
        (RUN, b"", 400, 3003),
        (RUN, b"[" * 50_000, 400, 5006),
        (RUN, b'{"prompt":"\xff"}', 400, 5006),
        (RUN, b'{"prompt":"\\ud800"}', 400, 5006),
        (RUN, b'{"prompt":"hi","lora":"00000000-0000-0000-0000-000000000"}', 400, 3037),
        (RUN, b'{"prompt":"hi","lora":"' + b"n" * 10_000 + b'"}', 400, 3037),
        (RUN, b'{"prompt":"hi","lora":"\\u0000\xc3\xa9"}', 400, 3037),
        (RUN, b'{"prompt":"hi","lora":"\\ud800"}', 400, 3037),
        (f"{ACCOUNT}/run/@cf/meta/llama", b'{"prompt":"hi"}', 400, 5007),
        (f"{ACCOUNT}/nowhere", b"{}", 400, 7000),
        ("/client/v4/nowhere", b"{}", 400, 7000),
    ],
)
async def test_refusals(
    client: ClientSession, engine: ScriptedEngine, path: str, body: bytes, status: int, code: int
) -> None:
    """A bad request gets its status and code as JSON, and never reaches the engine."""
    async with client.post(path, data=body) as response:
        assert response.status == status
        assert response.headers["Content-Type"] == "application/json"
        answer = json.loads(await response.read())
    assert answer["success"] is False
    assert answer["errors"][0]["code"] == code
    assert engine.requests == []


async def test_a_body_over_the_limit(serve: Serve, engine: ScriptedEngine) -> None:
    """A body is refused as soon as the limit is passed."""
    client = await serve(max_body_mib=1)
    async with client.post(RUN, data=io.BytesIO(b" " * (1 << 20) + b" ")) as response:
        assert response.status == 413
        assert (await response.json())["errors"][0]["code"] == 3006
    assert engine.requests == []


async def test_unknown_adapter_text(client: ClientSession) -> None:
    """The text that users of the original have seen."""
    async with client.post(RUN, data=b'{"prompt":"hi","lora":"nobody"}') as response:
        request_id = response.headers["cf-ai-req-id"]
        answer = json.loads(await response.read())
    assert answer["errors"] == [
        {"message": f"AiError: AiError: Finetune nobody not found ({request_id})", "code": 3037}
    ]


async def test_wrong_method(client: ClientSession) -> None:
    """The error for a wrong method names the method."""
    async with client.get(RUN) as response:
        assert response.status == 405
        assert (await response.json())["errors"] == [{"code": 7001, "message": "GET not supported for requested URI."}]


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "code"),
    [(Overloaded("full"), 429, 3040), (DecodeError("no"), 500, 3043), (ValueError("a bug"), 500, 3043)],
)
async def test_failure_before_the_first_piece(
    client: ClientSession, engine: ScriptedEngine, error: Exception, status: int, code: int, is_stream: bool
) -> None:
    """A failure before the first piece is a JSON error with its status, also for a stream."""
    engine.script = [error]
    async with client.post(RUN, json={"prompt": "hi", "stream": is_stream}) as response:
        assert response.status == status
        assert response.headers["Content-Type"] == "application/json"
        assert (await response.json())["errors"][0]["code"] == code


async def test_failure_after_the_first_piece(client: ClientSession, engine: ScriptedEngine) -> None:
    """The stream ends with an error frame and without ``[DONE]``; its connection serves the next request."""
    engine.script = ["Hello", EngineDied("killed")]
    async with client.post(RUN, json={"prompt": "hi", "stream": True}) as response:
        received = await response.content.read()
    assert b'"response":"Hello"' in received
    assert received.endswith(b'"AiError: Internal server error: killed","code":3043}],"success":false}\n\n')
    assert b"[DONE]" not in received
    engine.script = ["well"]
    async with client.post(RUN, json={"prompt": "hi"}) as response:
        assert response.status == 200


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("script", [[], ["Hello"]], ids=["before the first piece", "between pieces"])
async def test_a_client_that_leaves_cancels(
    client: ClientSession, engine: ScriptedEngine, script: list[str], is_stream: bool
) -> None:
    """A client that leaves while it waits or reads cancels its request at the engine."""
    reached = asyncio.Event()

    class Reached(asyncio.Event):
        async def wait(self) -> bool:  # type: ignore[override]
            reached.set()
            return await super().wait()

    engine.script = [*script, Reached()]
    asking = asyncio.ensure_future(client.post(RUN, json={"prompt": "hi", "stream": is_stream}))
    await asyncio.wait_for(reached.wait(), 5)
    if is_stream:
        (await asking).close()
    else:
        asking.cancel()
    await asyncio.wait_for(engine.left.wait(), 5)
    assert engine.cancelled == [engine.requests[0].request_id]


async def test_time_limit(serve: Serve, engine: ScriptedEngine) -> None:
    """An answer that takes longer than the server's limit is given up, with a status of its own."""
    client = await serve(request_timeout_s=0.05)
    engine.script = ["Hello", asyncio.Event()]
    async with client.post(RUN, json={"prompt": "hi"}) as response:
        assert response.status == 408
        assert (await response.json())["errors"][0]["code"] == 3007
    assert len(engine.cancelled) == 1


async def test_time_limit_of_a_stream(serve: Serve, engine: ScriptedEngine) -> None:
    """A stream over the time limit is broken off, and its end does not look like that of a whole answer."""
    client = await serve(request_timeout_s=0.05)
    engine.script = ["Hello", asyncio.Event()]
    async with client.post(RUN, json={"prompt": "hi", "stream": True}) as response:
        assert response.status == 200
        received = await response.content.read()
    assert b"[DONE]" not in received
    assert received.endswith(b'"AiError: Request timeout","code":3007}],"success":false}\n\n')
    assert engine.cancelled == [engine.requests[0].request_id]


async def test_tokens(serve: Serve, tmp_path: Path) -> None:
    """With a token file, only its tokens pass; each failure has Cloudflare's code."""
    (tmp_path / "tokens").write_text("secret\n")
    client = await serve(token_file=str(tmp_path / "tokens"))
    for headers, status, code in [
        ({}, 400, 9106),
        ({"Authorization": "Basic x"}, 400, 6003),
        ({"Authorization": "Bearer wrong"}, 401, 10000),
    ]:
        async with client.post(RUN, data=b'{"prompt":"hi"}', headers=headers) as response:
            assert response.status == status
            assert (await response.json())["errors"][0]["code"] == code
    async with client.post(RUN, data=b'{"prompt":"hi"}', headers={"Authorization": "Bearer secret"}) as response:
        assert response.status == 200
