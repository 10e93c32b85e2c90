"""Models by OpenAI's names: the base model is ``gemma-7b-it-lora``, an adapter ``gemma-7b-it-lora:NAME``.

A blend is ``gemma-7b-it-lora:NAME:SCALE+NAME:SCALE``. Each name that a chat takes has an entry of its own.
"""

from __future__ import annotations

from typing import Final

from aiohttp import web

from runtime.adapters.blend import BlendTerm, blend_of, is_plain_name, parse_lora
from runtime.errors import AdapterError, InvalidParameter, InvalidRequest, UnknownModel
from runtime.generation import Blend
from runtime.openai.wire import ModelEntry, render_model, render_models
from runtime.web.keys import ENGINE, STORE

BASE_MODEL: Final = "gemma-7b-it-lora"
_CLOUDFLARE_PREFIX: Final = "@cf/google/"
_FALLBACK_CONTEXT: Final = 4096  # tokens, while the engine has not yet said what it holds
_MAX_ECHO: Final = 200
_MAX_LISTED: Final = 10


def blend_of_model(request: web.Request, model: str, lora: tuple[BlendTerm, ...]) -> Blend:
    """The adapters that the model's name or the key ``lora`` asks for.

    Raises:
        UnknownModel: no such model.
        InvalidRequest: the two name different adapters, or the name cannot be read.
        AdapterError: there is no such adapter, or it cannot be used.
    """
    base, _, suffix = model.removeprefix(_CLOUDFLARE_PREFIX).partition(":")
    if base != BASE_MODEL:
        raise UnknownModel(_unknown(request, model), model)
    terms = parse_lora(suffix)
    if terms and lora and terms != lora:
        raise InvalidParameter(f"model names the adapter {suffix[:_MAX_ECHO]!r} and lora another; name one", "lora")
    return blend_of(terms or lora, request.app[STORE].member)


def context_of(request: web.Request) -> int:
    """Tokens of the context window."""
    ready = request.app[ENGINE].ready
    return ready.model.n_ctx if ready is not None else _FALLBACK_CONTEXT


async def list_models(request: web.Request) -> web.Response:
    """``GET /v1/models``: the base model, and one for each adapter."""
    return _json(render_models(_entries(request)))


async def get_model(request: web.Request) -> web.Response:
    """``GET /v1/models/{model}``: every name that a chat may give as its model.

    Raises:
        UnknownModel: no such model or adapter.
    """
    wanted = request.match_info["model"].rstrip("/")
    entries = {entry.id: entry for entry in _entries(request)}
    if wanted not in entries:
        try:
            blend_of_model(request, wanted, ())
        except (AdapterError, InvalidRequest) as error:
            raise UnknownModel(f"{_unknown(request, wanted)} ({error})", wanted) from None
    _, _, suffix = wanted.partition(":")
    entry = entries.get(wanted, ModelEntry(wanted, 0, suffix, BASE_MODEL if suffix else ""))
    return _json(render_model(entry))


def _entries(request: web.Request) -> list[ModelEntry]:
    adapters = [
        ModelEntry(
            f"{BASE_MODEL}:{one.name if is_plain_name(one.name) else one.id}",
            int(one.modified_at.timestamp()),
            one.name,
            BASE_MODEL,
        )
        for one in request.app[STORE].usable()
    ]
    return [ModelEntry(BASE_MODEL, 0), *adapters]


def _unknown(request: web.Request, model: str) -> str:
    """The error for an unknown model; its message lists those that exist."""
    names = [entry.id for entry in _entries(request)]
    listed = ", ".join(names[:_MAX_LISTED]) + (f" and {len(names) - _MAX_LISTED} more" * (len(names) > _MAX_LISTED))
    return f"no model {model[:_MAX_ECHO]!r}; there are {listed} (GET /v1/models)"


def _json(body: bytes) -> web.Response:
    return web.Response(body=body, headers={"Content-Type": "application/json"})
