"""``/ai/v1/chat/completions``: the recorded forms."""

import json
import re

import pytest
from aiohttp import ClientSession

from runtime.cloudflare.chat import WorkersChatFrames, render_chat
from runtime.generation import Blend, BlendMember, FinishReason, Usage
from runtime.web.streams import TextEnd, TextPiece
from tests.runtime.conftest import PIRATE_FILE
from tests.runtime.double import ScriptedEngine

PATH = "/client/v4/accounts/a/ai/v1/chat/completions"
HI = {"model": "@cf/google/gemma-7b-it-lora", "messages": [{"role": "user", "content": "hi"}]}


def test_frames() -> None:
    """Byte for byte as recorded, the differing orders of keys included."""
    frames = WorkersChatFrames(1778255778230)
    assert frames.text(TextPiece(0, "Hello")) == (
        b'data: {"id":"id-1778255778230","created":1778255778,"model":"@cf/google/gemma-7b-it-lora",'
        b'"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"Hello"}}]}\n\n'
    )
    assert frames.start() == b""
    assert frames.end(TextEnd(0, FinishReason.STOP, Usage(45, 2))) + frames.close(Usage(45, 2)) == (
        b'data: {"id":"id-1778255778230","object":"chat.completion.chunk","created":1778255778,'
        b'"model":"@cf/google/gemma-7b-it-lora","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],'
        b'"usage":{"prompt_tokens":45,"completion_tokens":2,"total_tokens":47}}\n\ndata: [DONE]\n\n'
    )
    assert b'"code":3043' in frames.error(ValueError("secret"))
    assert b"secret" not in frames.error(ValueError("secret"))


def test_whole() -> None:
    """A whole answer has no envelope."""
    assert (
        render_chat(1778255778230, "Hé", FinishReason.LENGTH, Usage(1, 2))
        == (
            '{"id":"id-1778255778230","object":"chat.completion","created":1778255778,"model":"@cf/google/gemma-7b-it-lora",'
            '"choices":[{"index":0,"message":{"role":"assistant","content":"Hé"},"finish_reason":"length"}],'
            '"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}'
        ).encode()
    )


async def test_route(client: ClientSession, engine: ScriptedEngine) -> None:
    """Whole and streamed, with an adapter; unknown keys are ignored."""
    async with client.post(PATH, json=HI | {"lora": "pirate", "whatever": 1}) as response:
        assert response.headers["Content-Type"] == "application/json"
        assert response.headers["cf-ai-neurons"] == "0.00"
        answer = await response.json()
    assert answer["choices"][0]["message"]["content"] == "Hello world"
    assert re.fullmatch(r"id-[0-9]{13}", answer["id"])
    async with client.post(PATH + "/?lora=pirate", json=HI | {"stream": True}) as response:
        assert (await response.read()).endswith(b"data: [DONE]\n\n")
    assert [request.blend for request in engine.requests] == [Blend((BlendMember(PIRATE_FILE.digest),))] * 2
    assert engine.requests[0].max_tokens == 256


@pytest.mark.parametrize(
    ("body", "code"),
    [(HI | {"model": "@cf/x"}, 5007), (HI | {"n": 2}, 5006), (HI | {"lora": "nobody"}, 3037), ([], 5006)],
)
async def test_errors(client: ClientSession, body: object, code: int) -> None:
    """Errors are those of the REST API."""
    async with client.post(PATH, data=json.dumps(body)) as response:
        assert response.status == 400
        assert (await response.json())["errors"][0]["code"] == code


@pytest.mark.parametrize("path", ["embeddings", "responses"])
async def test_other_kinds_of_model(client: ClientSession, path: str) -> None:
    """Embeddings and responses are refused, since there are no such models."""
    async with client.post(f"/client/v4/accounts/a/ai/v1/{path}", json={"model": "@cf/baai/bge"}) as response:
        assert (response.status, (await response.json())["errors"][0]["code"]) == (400, 5007)


async def test_models_cannot_be_listed_here(client: ClientSession) -> None:
    """Listing models at this path is refused, as Cloudflare does."""
    async with client.get("/client/v4/accounts/a/ai/v1/models") as response:
        assert response.status == 405
        assert (await response.json())["errors"][0]["code"] == 7001
