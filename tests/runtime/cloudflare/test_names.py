"""The two names that Cloudflare gives the model, one for each size of Gemma 1."""

from dataclasses import replace

import pytest
from aiohttp import ClientSession

from runtime.cloudflare.wire import MODEL, MODEL_2B
from tests.runtime.conftest import Serve
from tests.runtime.double import READY, ScriptedEngine

AI = "/client/v4/accounts/a/ai"
HI = [{"role": "user", "content": "hi"}]
BOTH = (MODEL, MODEL_2B)


async def runs(client: ClientSession, name: str) -> list[int]:
    """The codes of errors, 0 for none, of each route that takes the model's name."""
    calls = [
        (f"{AI}/run/{name}", {"prompt": "hi"}, {}),
        (f"{AI}/v1/chat/completions", {"model": name, "messages": HI}, {}),
        ("/run?version=3", {"inputs": {"prompt": "hi"}}, {"cf-consn-model-id": name}),
        (f"/v1/a/g/workers-ai/{name}", {"prompt": "hi"}, {}),
        ("/v1/a/g", [{"provider": "workers-ai", "endpoint": name, "query": {"prompt": "hi"}}], {}),
    ]
    codes = []
    for path, body, headers in calls:
        async with client.post(path, json=body, headers=headers) as response:
            answer = await response.json()
            assert answer.get("model", name) == name
        errors = answer.get("errors") or [{"code": answer.get("internalCode", 0)}]
        codes.append(errors[0]["code"])
    async with client.get(f"{AI}/models/schema", params={"model": name}) as response:
        codes.append(0 if response.status == 200 else response.status)
    return codes


async def listed(client: ClientSession) -> list[str]:
    """The names in the catalogue."""
    async with client.get(f"{AI}/models/search") as response:
        return [entry["name"] for entry in (await response.json())["result"]]


@pytest.mark.parametrize("name", BOTH)
async def test_both_names_answer(client: ClientSession, name: str) -> None:
    """Every route takes both names, and ``ai/v1`` answers with the name that it was asked by."""
    assert await runs(client, name) == [0] * 6


@pytest.mark.parametrize(("name", "other"), [BOTH, BOTH[::-1]])
async def test_one_name_can_be_set(serve: Serve, name: str, other: str) -> None:
    """With ``cloudflare_model`` one name answers, and the other is an unknown model on every route."""
    client = await serve(cloudflare_model=name)
    assert await runs(client, name) == [0] * 6
    assert await runs(client, other) == [5007] * 5 + [404]
    assert await listed(client) == [name]


@pytest.mark.parametrize(("n_params", "name"), [(2_506_172_416, MODEL_2B), (8_537_680_896, MODEL), (1_000_000, MODEL)])
async def test_the_catalogue_lists_the_size_of_the_base(
    client: ClientSession, engine: ScriptedEngine, n_params: int, name: str
) -> None:
    """A base of 2.5e9 parameters is listed as Gemma 2B; every other, and none yet, as Gemma 7B."""
    engine.ready = replace(READY, model=replace(READY.model, n_params=n_params))
    assert await listed(client) == [name]
    engine.ready = None
    assert await listed(client) == [MODEL]
