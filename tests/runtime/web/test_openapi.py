"""``/openapi.json`` against the routes: every route is described, and answers as described."""

from __future__ import annotations

import json
import random
import re
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import ClientSession
from yarl import URL

from runtime.adapters.service import AdapterService
from runtime.adapters.store import Store
from runtime.app import build_app
from runtime.config import ServerSettings
from tests.runtime.double import ScriptedEngine

UNDESCRIBED = re.compile(r"/|/playground/.*|.*/run/proxy|.*/ai/v1/(embeddings|responses|models)")
"""Proxies of what is described, places where nothing is, and the files of the playground."""
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2.5, 1e308, 10**30, "", "hi", "true", "\x00", "é😀", "\ud800", "x" * 7000, [], {},
    [None], ["hi"], [{"role": "user", "content": "hi"}], [{"role": "user", "content": [{"type": "text", "text": "a"}]}],
    [{"role": "user"}], {"a": {"b": []}}, "gemma-7b-it-lora", "@cf/google/gemma-7b-it-lora", "pirate",
]  # fmt: skip
HEADERS = {"cf-consn-model-id": "@cf/google/gemma-7b-it-lora"}
KEYS = (
    "prompt", "messages", "raw", "stream", "max_tokens", "temperature", "top_p", "top_k", "seed", "stop", "n", "lora",
    "repetition_penalty", "frequency_penalty", "presence_penalty", "stream_options", "tools", "unknown", "model",
    "name", "description", "public", "inputs", "options",
)  # fmt: skip


@pytest.fixture
async def document(client: ClientSession) -> dict[str, Any]:
    """The document as it is served."""
    async with client.get("/openapi.json") as response:
        assert response.status == 200
        return dict(await response.json())


def test_every_route_is_described(document: dict[str, Any]) -> None:
    """Every route has a description, and every description has its route."""
    engine = ScriptedEngine()
    app = build_app(engine, AdapterService(Store(engine, 100, lambda _: None)), ServerSettings())
    routes = {
        (re.sub(r"\{(\w+):[^}]*\}", r"{\1}", route.resource.canonical.rstrip("/")), route.method.lower())
        for route in app.router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    operations = {(path, method) for path, item in document["paths"].items() for method in item} - {
        (path, "parameters") for path in document["paths"]
    }
    assert {route for route in routes if not UNDESCRIBED.fullmatch(route[0] or "/")} == operations


def request_of(rng: random.Random, path: str, item: dict[str, Any]) -> tuple[URL, bytes]:
    """A URL with plausible or absurd parts, and a body likewise."""
    parts = ["a", "pirate", "@cf/google/gemma-7b-it-lora", "gemma-7b-it-lora", "é", "%", "x" * 300, "\x00"]
    filled = re.sub(r"\{\w+\}", lambda _: quote(rng.choice(parts), safe=""), path)
    queries = [parameter["name"] for parameter in item.get("parameters", []) if parameter["in"] == "query"]
    query = "&".join(f"{name}={quote(rng.choice([*parts, '3', '1', '-1']))}" for name in queries if rng.random() < 0.5)
    if path.endswith("run") and rng.random() < 0.9:
        query = "version=3"
    body = {key: rng.choice(VALUES) for key in rng.sample(KEYS, rng.randrange(6))}
    if "inputs" in body and rng.random() < 0.8:
        body["inputs"] = {"prompt": "hi", rng.choice(KEYS): rng.choice(VALUES)}
    raw = json.dumps(body).encode()
    if rng.random() < 0.1:
        raw = rng.choice([b"", b"{", b"\xff\xfe", b"null", b"[" * 5000, raw[: len(raw) // 2]])
    return URL(f"{filled}?{query}" if query else filled, encoded=True), raw


async def test_no_answer_is_undocumented(client: ClientSession, document: dict[str, Any]) -> None:
    """Thousands of odd requests: each status and content type is a described one, none is a 500."""
    rng = random.Random(7)
    for _ in range(60):
        for path, item in document["paths"].items():
            for method in ("get", "post", "delete"):
                url, body = request_of(rng, path, item)
                async with client.request(method, url, data=body, headers=HEADERS) as response:
                    content = await response.read()
                described = item.get(method, {"responses": {"405": {}}})["responses"]
                place = f"{method} {url} {body[:500]!r} -> {response.status} {content[:300]!r}"
                assert response.status != 500, place
                if str(response.status) not in described:
                    assert _is_elsewhere(url, document), place
                elif described[str(response.status)]:
                    assert response.headers["Content-Type"] in described[str(response.status)]["content"], place


def _is_elsewhere(url: URL, document: dict[str, Any]) -> bool:
    """Whether a filled-in path became another one (``finetunes/..``, ``finetunes/public``) or none."""
    patterns = [re.sub(r"\{\w+\}", "[^/]+", path) for path in document["paths"]]
    return sum(bool(re.fullmatch(pattern, url.raw_path)) for pattern in patterns) != 1
