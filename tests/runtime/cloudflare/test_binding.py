"""The Worker binding by its three ways."""

import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession

from runtime.errors import EngineDied
from runtime.generation import BASE, Blend, BlendMember
from tests.runtime.conftest import PIRATE, PIRATE_FILE, Serve
from tests.runtime.double import ScriptedEngine

MODEL = "@cf/google/gemma-7b-it-lora"
PIRATES = Blend((BlendMember(PIRATE_FILE.digest),))
RESULT = b'{"response":"Hello world","usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9}}'
URL = "https://workers-binding.ai/run?version=3"
WAYS = [
    ("/run?version=3", {"cf-consn-model-id": MODEL}),
    ("/run?version=3", {"cf-consn-model-id": f"prefix:{MODEL}"}),
    ("/ai-gateway/run?version=3", {"cf-consn-model-id": MODEL}),
    ("/", {"MF-Header-cf-consn-model-id": MODEL, "MF-URL": URL, "MF-Binding": "AI"}),
    ("/client/v4/accounts/a/ai/run/proxy", {"cf-consn-model-id": MODEL, "X-Forwarded": URL}),
]


@pytest.mark.parametrize(("path", "headers"), WAYS)
async def test_run(client: ClientSession, engine: ScriptedEngine, path: str, headers: dict[str, str]) -> None:
    """The page's Worker: the bare result, exactly this content type, whichever way the call came."""
    body = {"inputs": {"prompt": "tell me a story", "raw": True, "lora": PIRATE.id}, "options": {}}
    async with client.post(path, json=body, headers=headers) as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "application/json"
        assert await response.read() == RESULT
        assert response.headers["cf-ai-req-id"] == engine.requests[0].request_id
    assert engine.requests[0].prompt.text == "tell me a story"
    assert engine.requests[0].blend == PIRATES


@pytest.mark.parametrize(("path", "headers"), WAYS)
async def test_stream(client: ClientSession, path: str, headers: dict[str, str]) -> None:
    """A binding's stream is the native one."""
    body = {"inputs": {"prompt": "hi", "stream": True}}
    async with client.post(path, json=body, headers=headers) as response:
        assert response.headers["Content-Type"] == "text/event-stream"
        assert (await response.read()).endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(("path", "headers"), WAYS)
async def test_errors_are_not_wrapped(client: ClientSession, path: str, headers: dict[str, str]) -> None:
    """An error has the keys that a Worker's runtime reads, without an envelope."""
    async with client.post(path, json={"inputs": {}}, headers=headers) as response:
        assert response.status == 400
        assert json.loads(await response.read()) == {
            "internalCode": 5006,
            "httpCode": 400,
            "name": "AiError",
            "message": "AiError: Bad input: Error: oneOf at '/' not met, 0 matches: required properties at '/' are "
            "'prompt', required properties at '/' are 'messages'",
            "description": "Error: oneOf at '/' not met, 0 matches: required properties at '/' are 'prompt', required "
            "properties at '/' are 'messages'",
        }


@pytest.mark.parametrize(
    ("options", "blend"), [({"lora": "pirate"}, PIRATES), ({"lora": 5}, BASE), (None, BASE), ([], BASE)]
)
async def test_lora_among_the_options(
    client: ClientSession, engine: ScriptedEngine, options: Any, blend: Blend
) -> None:
    """``lora`` is also read from the options, where workers-ai-provider puts its settings."""
    path, headers = WAYS[0]
    async with client.post(path, json={"inputs": {"prompt": "hi"}, "options": options}, headers=headers) as response:
        assert response.status == 200
    assert engine.requests[0].blend == blend


@pytest.mark.parametrize(
    ("path", "model", "body", "status", "code"),
    [
        ("/run?version=3", "@cf/x", {"inputs": {"prompt": "hi"}}, 400, 5007),
        ("/run?version=3", "", {"inputs": {"prompt": "hi"}}, 400, 5007),
        ("/run?version=3", MODEL, {"inputs": {"prompt": "hi", "lora": "nobody"}}, 400, 3037),
        ("/run?version=3", MODEL, {}, 400, 5006),
        ("/run?version=3", MODEL, [], 400, 5006),
        ("/run?version=2", MODEL, {"inputs": {"prompt": "hi"}}, 405, 5019),
        ("/run", MODEL, {"inputs": {"prompt": "hi"}}, 405, 5019),
    ],
)
async def test_refusals(client: ClientSession, path: str, model: str, body: Any, status: int, code: int) -> None:
    """Each refusal has its code."""
    async with client.post(path, json=body, headers={"cf-consn-model-id": model}) as response:
        assert (response.status, (await response.json())["internalCode"]) == (status, code)


async def test_a_websocket_is_refused(client: ClientSession) -> None:
    """A WebSocket, which other models have, is refused."""
    async with client.get("/run?version=3&body=%7B%7D", headers={"cf-consn-model-id": MODEL}) as response:
        assert (response.status, (await response.json())["internalCode"]) == (405, 7001)
    headers = {"MF-URL": URL, "MF-Header-cf-consn-model-id": MODEL}
    async with client.get("/", headers=headers) as response:
        assert (response.status, (await response.json())["internalCode"]) == (405, 7001)


async def test_reject_if_busy(client: ClientSession, engine: ScriptedEngine) -> None:
    """A request that does not want to wait is refused when every place is taken, and only then."""
    path, headers = WAYS[0]
    body = {"inputs": {"prompt": "hi"}, "options": {"rejectIfBusy": True}}
    async with client.post(path, json=body, headers=headers) as response:
        assert response.status == 200
    engine.n_in_flight = 2
    async with client.post(path, json=body, headers=headers) as response:
        assert (response.status, (await response.json())["internalCode"]) == (429, 3040)


async def test_engine_errors(client: ClientSession, engine: ScriptedEngine) -> None:
    """Errors of the engine have no envelope either."""
    path, headers = WAYS[0]
    engine.script = [EngineDied("killed")]
    async with client.post(path, json={"inputs": {"prompt": "hi"}}, headers=headers) as response:
        assert (response.status, (await response.json())["internalCode"]) == (500, 3043)


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/ai-api/models/search?per_page=5", {}),
        ("/", {"MF-URL": "https://workers-binding.ai/ai-api/models/search"}),
        ("/client/v4/accounts/a/ai/run/proxy", {"X-Forwarded": "https://workers-binding.ai/ai-api/models/search"}),
    ],
)
async def test_models(client: ClientSession, path: str, headers: dict[str, str]) -> None:
    """``env.AI.models()`` gets the catalogue in each of the three ways."""
    async with client.get(path, headers=headers) as response:
        assert [model["name"] for model in (await response.json())["result"]] == [MODEL]


async def test_strangers_at_the_root(client: ClientSession) -> None:
    """Miniflare first tries a WebSocket at ``/``, which is answered 404."""
    async with client.get("/?MF-Binding=AI") as response:
        assert response.status == 404
    async with client.post("/", json={}, headers={"MF-URL": "https://workers-binding.ai/elsewhere"}) as response:
        assert (response.status, (await response.json())["internalCode"]) == (400, 7000)
    async with client.post("/", json={}, headers={"MF-URL": "http://[half"}) as response:
        assert (response.status, (await response.json())["internalCode"]) == (400, 5006)


async def test_miniflares_token_stands_in_its_url(serve: Serve, tmp_path: Path) -> None:
    """Miniflare's remote proxy sets no header, so its URL holds the token; no other URL may."""
    (tmp_path / "tokens").write_text("secret\n")
    client = await serve(token_file=str(tmp_path / "tokens"))
    headers = {"MF-URL": "https://workers-binding.ai/run?version=3", "MF-Header-cf-consn-model-id": MODEL}
    body = {"inputs": {"prompt": "hi"}, "options": {}}
    for query, status in (("?token=secret", 200), ("?token=wrong", 401), ("", 400)):
        async with client.post(f"/{query}", json=body, headers=headers) as response:
            assert response.status == status
    async with client.post(f"/client/v4/accounts/a/ai/run/{MODEL}?token=secret", json={"prompt": "hi"}) as response:
        assert response.status == 400
