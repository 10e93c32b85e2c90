"""``/v1``: chat completions, completions and models, for OpenAI's clients and everything that speaks like them.

The base model is ``gemma-7b-it-lora``; an adapter is the model ``gemma-7b-it-lora:NAME`` (or the key ``lora``),
and a blend the model ``gemma-7b-it-lora:NAME:SCALE+NAME:SCALE``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from aiohttp import web

from runtime.adapters.blend import blend_of, is_plain_name, parse_lora
from runtime.chat.body import CompletionInput, parse_completion, parse_messages, parse_prompt
from runtime.errors import InvalidRequest, UnknownModel
from runtime.generation import Blend, FinishReason, GenerationRequest, Prompt, Usage
from runtime.openai.errors import render_error
from runtime.openai.wire import ChatFrames, Head, TextFrames, render_chat, render_model, render_models, render_text
from runtime.prompt import gemma
from runtime.prompt.gemma import SystemRole
from runtime.web.answers import collect, stream
from runtime.web.body import parse_json_object
from runtime.web.dialect import ErrorAnswer, ErrorFormat
from runtime.web.keys import ENGINE, LIMITS, REQUEST_ID, SETTINGS, STORE
from runtime.web.limits import read_body
from runtime.web.streams import Frames

BASE_MODEL: Final = "gemma-7b-it-lora"
_CLOUDFLARE_PREFIX: Final = "@cf/google/"
_DEFAULT_TEXT_TOKENS: Final = 16  # OpenAI's default for plain completions
_FALLBACK_CONTEXT: Final = 4096  # tokens, while the engine has not yet said what it holds

Render = Callable[[Head, str, FinishReason, Usage], bytes]


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """``POST /v1/chat/completions``."""
    body = parse_json_object(await read_body(request, request.app[LIMITS]))
    asked = parse_completion(body)
    prompt = gemma.render(parse_messages(body), SystemRole(request.app[SETTINGS].system_role))
    ready = request.app[ENGINE].ready
    max_tokens = ready.model.n_ctx if ready is not None else _FALLBACK_CONTEXT
    generation = _generation(request, asked, prompt, max_tokens)
    head = _head("chatcmpl-", request, asked)
    return await _answer(request, generation, head, render_chat, _frames(asked, head, ChatFrames))


async def completions(request: web.Request) -> web.StreamResponse:
    """``POST /v1/completions``: the prompt as it stands, without a template."""
    body = parse_json_object(await read_body(request, request.app[LIMITS]))
    asked = parse_completion(body)
    generation = _generation(request, asked, gemma.render_raw(parse_prompt(body)), _DEFAULT_TEXT_TOKENS)
    head = _head("cmpl-", request, asked)
    return await _answer(request, generation, head, render_text, _frames(asked, head, TextFrames))


async def list_models(request: web.Request) -> web.Response:
    """``GET /v1/models``: the base model, and one for each adapter."""
    return _json(render_models(_models(request)))


async def get_model(request: web.Request) -> web.Response:
    """``GET /v1/models/{model}``."""
    wanted = request.match_info["model"]
    for name, created in _models(request):
        if name == wanted:
            return _json(render_model(name, created))
    raise UnknownModel(f"no model {wanted[:200]!r}; GET /v1/models lists those there are", wanted)


def add_routes(app: web.Application) -> None:
    """Everything under ``/v1``."""
    for slash in ("", "/"):
        app.router.add_post("/v1/chat/completions" + slash, chat_completions)
        app.router.add_post("/v1/completions" + slash, completions)
        app.router.add_get("/v1/models" + slash, list_models)
    app.router.add_get("/v1/models/{model:.+}", get_model)


def _models(request: web.Request) -> list[tuple[str, int]]:
    adapters = [
        (f"{BASE_MODEL}:{one.name if is_plain_name(one.name) else one.id}", int(one.modified_at.timestamp()))
        for one in request.app[STORE].usable()
    ]
    return [(BASE_MODEL, 0), *adapters]


def _blend(request: web.Request, asked: CompletionInput) -> Blend:
    """The adapter that the model's name or the key ``lora`` asks for.

    Raises:
        UnknownModel: the name is not ours.
        InvalidRequest: the two name different adapters.
        AdapterError: there is no such adapter, or it cannot be used.
    """
    base, _, suffix = asked.model.removeprefix(_CLOUDFLARE_PREFIX).partition(":")
    if base != BASE_MODEL:
        raise UnknownModel(f"no model {asked.model[:200]!r}; GET /v1/models lists those there are", asked.model)
    terms = parse_lora(suffix)
    if terms and asked.lora and terms != asked.lora:
        raise InvalidRequest(f"model names the adapter {suffix[:200]!r} and lora another; name one")
    return blend_of(terms or asked.lora, request.app[STORE].member)


def _generation(
    request: web.Request, asked: CompletionInput, prompt: Prompt, default_max_tokens: int
) -> GenerationRequest:
    return GenerationRequest(
        request_id=request[REQUEST_ID],
        prompt=prompt,
        max_tokens=default_max_tokens if asked.max_tokens is None else asked.max_tokens,
        sampling=asked.sampling,
        blend=_blend(request, asked),
        stop=asked.stop,
    )


def _head(prefix: str, request: web.Request, asked: CompletionInput) -> Head:
    return Head(prefix + request[REQUEST_ID].replace("-", ""), int(time.time()), asked.model)


def _frames(asked: CompletionInput, head: Head, kind: Callable[..., Frames]) -> Frames | None:
    """How the stream is written, if one was asked for."""
    return kind(head, includes_usage=asked.includes_usage) if asked.is_stream else None


async def _answer(
    request: web.Request, generation: GenerationRequest, head: Head, render: Render, frames: Frames | None
) -> web.StreamResponse:
    if frames is not None:
        return await stream(request, generation, frames)
    answer = await collect(request, generation)
    return _json(render(head, answer.text, answer.finish_reason, answer.usage))


def _json(body: bytes) -> web.Response:
    return web.Response(body=body, headers={"Content-Type": "application/json"})


def _render_error(error: Exception, _request_id: str) -> ErrorAnswer:
    fault, body = render_error(error)
    return ErrorAnswer(fault.status, body, {"Retry-After": str(fault.retry_after_s)} if fault.retry_after_s else {})


ERROR_FORMAT: Final = ErrorFormat(
    is_mine=lambda request: request.path.startswith("/v1/"),
    headers=lambda request_id: {"x-request-id": request_id},
    render_error=_render_error,
)
