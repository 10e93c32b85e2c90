"""What is only looked at."""

from typing import Any

import pytest
from aiohttp import ClientSession

from runtime.cloudflare.wire import MODEL, SCHEMA

AI = "/client/v4/accounts/a/ai"


async def get(client: ClientSession, path: str, status: int = 200) -> Any:
    """The body, after a look at the envelope."""
    async with client.get(path) as response:
        assert response.status == status
        assert response.headers["Content-Type"] == "application/json"
        body = await response.json()
    assert body["success"] is (status == 200)
    assert isinstance(body["messages"], list)
    return body


@pytest.mark.parametrize(
    ("query", "n_found"),
    [
        ("", 1),
        ("?per_page=50&page=1", 1),
        ("?page=2", 0),
        ("?page=x", 1),
        ("?search=gemma", 1),
        ("?search=LoRA&task=Text+Generation", 1),
        ("?search=llama", 0),
        ("?task=Text-to-Image", 0),
        ("?author=google", 1),
        ("?author=meta", 0),
        ("?source=2", 0),
    ],
)
async def test_search(client: ClientSession, query: str, n_found: int) -> None:
    """Filters act, and a page past the last is empty, or SDKs would page for ever."""
    body = await get(client, f"{AI}/models/search{query}")
    assert [model["name"] for model in body["result"]] == [MODEL] * n_found
    assert body["result_info"]["count"] == n_found


async def test_schema(client: ClientSession) -> None:
    """The model's own; another model has its own error."""
    body = await get(client, f"{AI}/models/schema?model=%40cf%2Fgoogle%2Fgemma-7b-it-lora")
    assert body["result"] == SCHEMA
    assert (await get(client, f"{AI}/models/schema?model=x", 404))["errors"][0]["code"] == 6002


@pytest.mark.parametrize(
    "path",
    [
        f"{AI}/tasks/search",
        f"{AI}/authors/search/",
        "/client/v4/accounts?page=1",
        "/client/v4/memberships?page=1",
        "/client/v4/user/tokens/verify",
    ],
)
async def test_lists(client: ClientSession, path: str) -> None:
    """Each list that clients ask for has an entry."""
    assert (await get(client, path))["result"]
