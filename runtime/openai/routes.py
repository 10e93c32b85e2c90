"""``/v1``: chat completions, completions and models, for OpenAI's clients and compatible ones."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Final

from aiohttp import web

from runtime.chat.body import CompletionInput, parse_chat, parse_text
from runtime.chat.messages import parse_messages
from runtime.chat.prompts import parse_prompts
from runtime.errors import InvalidParameter, UnsupportedGrammar
from runtime.generation import GenerationRequest, Prompt, Sampling
from runtime.openai.errors import render_error
from runtime.openai.models import blend_of_model, context_of, get_model, list_models
from runtime.openai.wire import ChatFrames, Head, TextFrames, render_chat, render_text
from runtime.prompt import gemma
from runtime.prompt.gemma import SystemRole
from runtime.web.answers import Ask, collect_all, refuse_oversized, stream
from runtime.web.body import parse_json_object
from runtime.web.dialect import ErrorAnswer, ErrorFormat
from runtime.web.keys import IGNORED, LIMITS, REQUEST_ID, SETTINGS
from runtime.web.limits import read_body
from runtime.web.streams import Answer, Frames

_DEFAULT_TEXT_TOKENS: Final = 16  # OpenAI's default for plain completions
_MAX_ASKS: Final = 128
_SEED_MASK: Final = 2**63 - 1

Render = Callable[[Head, Sequence[Answer]], bytes]


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """``POST /v1/chat/completions``."""
    body = parse_json_object(await read_body(request, request.app[LIMITS]))
    asked = parse_chat(body)
    messages = parse_messages(body.get("messages"))
    refuse_oversized(request, [message.content for message in messages])
    prompt = gemma.render(messages, SystemRole(request.app[SETTINGS].system_role))
    asks = _asks(request, asked, [prompt], context_of(request))
    head = _head("chatcmpl-", request, asked)
    frames = ChatFrames(head, len(asks), includes_usage=asked.includes_usage)
    return await _answer(request, asked, asks, head, render_chat, frames)


async def completions(request: web.Request) -> web.StreamResponse:
    """``POST /v1/completions``: each prompt as it stands, without a template."""
    body = parse_json_object(await read_body(request, request.app[LIMITS]))
    asked = parse_text(body)
    prompts = parse_prompts(body)
    for prompt in prompts:
        refuse_oversized(request, [prompt.text], len(prompt.tokens))
    asks = _asks(request, asked, prompts, _DEFAULT_TEXT_TOKENS)
    head = _head("cmpl-", request, asked)
    frames = TextFrames(head, includes_usage=asked.includes_usage)
    return await _answer(request, asked, asks, head, render_text, frames)


def add_routes(app: web.Application) -> None:
    """Everything under ``/v1``."""
    for slash in ("", "/"):
        app.router.add_post("/v1/chat/completions" + slash, chat_completions)
        app.router.add_post("/v1/completions" + slash, completions)
        app.router.add_get("/v1/models" + slash, list_models)
    app.router.add_get("/v1/models/{model:.+}", get_model)


def _asks(
    request: web.Request, asked: CompletionInput, prompts: Sequence[Prompt], default_max_tokens: int
) -> list[Ask]:
    """The answers to make: for each prompt ``n`` of them, with seeds of their own.

    Raises:
        InvalidParameter: too many together.
        GemlaneError: the model or its adapters, as ``blend_of_model`` raises it.
    """
    if len(prompts) * asked.n_choices > _MAX_ASKS:
        raise InvalidParameter(f"n times the number of prompts may be {_MAX_ASKS} at most", "n")
    request[IGNORED] = asked.ignored
    blend = blend_of_model(request, asked.model, asked.lora)
    asks = []
    for index in range(len(prompts) * asked.n_choices):
        prompt = prompts[index // asked.n_choices]
        generation = GenerationRequest(
            request_id=request[REQUEST_ID] + (f":{index}" if index else ""),
            prompt=prompt,
            max_tokens=default_max_tokens if asked.max_tokens is None else asked.max_tokens,
            sampling=_reseeded(asked.sampling, index % asked.n_choices),
            blend=blend,
            stop=asked.stop,
            n_logprobs=asked.n_logprobs,
            n_draft_max=asked.n_draft_max,
            prediction=asked.prediction,
            # Token ids are echoed by what the engine says of them.
            scores_prompt=asked.has_echo and (asked.n_logprobs is not None or bool(prompt.tokens)),
        )
        asks.append(Ask(generation, asked.has_echo))
    return asks


def _reseeded(sampling: Sampling, choice: int) -> Sampling:
    """The sampling of one choice: without seeds of their own all choices would be equal."""
    if sampling.seed is None or not choice:
        return sampling
    return dataclasses.replace(sampling, seed=(sampling.seed + choice) & _SEED_MASK)


def _head(prefix: str, request: web.Request, asked: CompletionInput) -> Head:
    return Head(
        prefix + request[REQUEST_ID].replace("-", ""),
        int(time.time()),
        asked.model,
        asked.n_choices,
        asked.n_logprobs is not None,
    )


async def _answer(
    request: web.Request, asked: CompletionInput, asks: Sequence[Ask], head: Head, render: Render, frames: Frames
) -> web.StreamResponse:
    try:
        if asked.is_stream:
            return await stream(request, asks, frames, n_for_each_prompt=asked.n_choices)
        answers = await collect_all(request, asks)
    except UnsupportedGrammar as error:
        # The engine knows what is wrong with the grammar, and not which key it came by.
        raise UnsupportedGrammar(f"{asked.structure_param}: {error}", asked.structure_param) from None
    return web.Response(body=render(head, answers), headers={"Content-Type": "application/json"})


def _render_error(error: Exception, _request_id: str) -> ErrorAnswer:
    fault, body = render_error(error)
    return ErrorAnswer(fault.status, body, {"Retry-After": str(fault.retry_after_s)} if fault.retry_after_s else {})


ERROR_FORMAT: Final = ErrorFormat(
    is_mine=lambda request: request.path.startswith("/v1/"),
    headers=lambda request_id: {"x-request-id": request_id},
    render_error=_render_error,
)
