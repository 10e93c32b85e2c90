"""The catalogue: which models, tasks and authors there are (one of each), and the model's schema.

Source: docs ``workers-ai-models/gemma-7b-it-lora.json`` and ``gemma-2b-it-lora.json`` for ids, texts and properties;
recorded answers for the shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from aiohttp import web

from runtime.cloudflare.wire import MODEL, MODEL_2B, SCHEMA, names_of, render_envelope
from runtime.errors import UnknownSchema
from runtime.web.keys import ENGINE, SETTINGS

_TASK: Final[dict[str, str]] = {
    "id": "c329a1f9-323d-4e91-b2aa-582dd4188d34",
    "name": "Text Generation",
    "description": "Family of generative text models, such as large language models (LLM), that can be adapted for a "
    "variety of natural language tasks.",
}
_DESCRIPTION: Final = (
    "This is a Gemma-{}B base model that Cloudflare dedicates for inference with LoRA adapters. Gemma is a family of "
    "lightweight, state-of-the-art open models from Google, built from the same research and technology used to create "
    "the Gemini models."
)


def _entry(model_id: str, name: str, description: str) -> dict[str, Any]:
    properties = [{"property_id": "beta", "value": "true"}, {"property_id": "lora", "value": "true"}]
    return {
        "id": model_id,
        "source": 1,
        "name": name,
        "description": description,
        "task": _TASK,
        "tags": [],
        "properties": properties,
    }


_MODELS: Final = {
    MODEL: _entry("337170b7-bd2f-4631-9a57-688b579cf6d3", MODEL, "  " + _DESCRIPTION.format(7)),
    MODEL_2B: _entry("e8e8abe4-a372-4c13-815f-4688ba655c8e", MODEL_2B, _DESCRIPTION.format(2)),
}
_SIZES_OF_2B: Final = range(1_000_000_000, 5_000_000_000)
"""Parameters of a base that is listed as the smaller one: Gemma 2B has 2.5e9, Gemma 7B 8.5e9."""
_AUTHOR: Final = "google"
_SOURCE: Final = "1"
_PER_PAGE: Final = 50  # the original pays no attention to per_page either


def _listed(request: web.Request) -> dict[str, Any]:
    """The one entry of the catalogue: that of the setting, else that of the loaded base's size."""
    choice, ready = request.app[SETTINGS].cloudflare_model, request.app[ENGINE].ready
    if choice != "auto":
        return _MODELS[choice]
    return _MODELS[MODEL_2B if ready is not None and ready.model.n_params in _SIZES_OF_2B else MODEL]


def search(request: web.Request, query: Mapping[str, str]) -> web.Response:
    """``models/search``: the model if it fits the query, on the first page; an empty list ends the clients' paging."""
    model = _listed(request)
    found = [model] if _fits(model, query) else []
    page = _page(query.get("page", ""))
    result = found if page == 1 else []
    info = {"page": page, "per_page": _PER_PAGE, "count": len(result), "total_count": len(found)}
    return _answer(result, result_info=info)


async def models_search(request: web.Request) -> web.Response:
    """``GET .../ai/models/search``."""
    return search(request, request.query)


async def models_schema(request: web.Request) -> web.Response:
    """``GET .../ai/models/schema?model=``.

    Raises:
        UnknownSchema: another model.
    """
    model = request.query.get("model", "")
    if model not in names_of(request.app[SETTINGS].cloudflare_model):
        raise UnknownSchema("no schema for that model", model)
    return _answer({"input": SCHEMA["input"], "output": SCHEMA["output"]})


async def tasks_search(_request: web.Request) -> web.Response:
    """``GET .../ai/tasks/search``."""
    return _answer([_TASK])


async def authors_search(_request: web.Request) -> web.Response:
    """``GET .../ai/authors/search``."""
    return _answer([{"name": _AUTHOR}])


async def accounts(_request: web.Request) -> web.Response:
    """``GET /client/v4/accounts``, by which wrangler finds an account when none is named."""
    return _answer([{"id": "0" * 32, "name": "local"}], result_info={"page": 1, "per_page": 20, "count": 1})


async def memberships(_request: web.Request) -> web.Response:
    """``GET /client/v4/memberships``, the same for older versions."""
    return _answer([{"id": "0" * 32, "account": {"id": "0" * 32, "name": "local"}}])


async def verify_token(_request: web.Request) -> web.Response:
    """``GET /client/v4/user/tokens/verify``: a request that reaches this handler has a valid token."""
    return _answer({"id": "0" * 32, "status": "active"})


def add_routes(app: web.Application) -> None:
    """The routes of the catalogue, all read-only."""
    ai = "/client/v4/accounts/{account}/ai"
    routes = {
        ai + "/models/search": models_search,
        ai + "/models/schema": models_schema,
        ai + "/tasks/search": tasks_search,
        ai + "/authors/search": authors_search,
        "/client/v4/accounts": accounts,
        "/client/v4/memberships": memberships,
        "/client/v4/user/tokens/verify": verify_token,
    }
    for path, handler in routes.items():
        app.router.add_get(path, handler)
        app.router.add_get(path + "/", handler)


def _fits(model: Mapping[str, Any], query: Mapping[str, str]) -> bool:
    """Whether the model passes every filter that the query names; an empty one filters nothing."""
    task, search_text = query.get("task", "").lower(), query.get("search", "").lower()
    return (
        search_text in (model["name"] + model["description"]).lower()
        and task in ("", _TASK["name"].lower(), _TASK["id"])
        and query.get("author", "").lower() in ("", _AUTHOR)
        and query.get("source", "") in ("", _SOURCE)
    )


def _page(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 and int(text) > 0 else 1


def _answer(result: Any, **more: Any) -> web.Response:
    return web.Response(body=render_envelope(result, **more), headers={"Content-Type": "application/json"})
