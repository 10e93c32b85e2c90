"""``/v1/responses``: text in, text out."""

from __future__ import annotations

import time

from aiohttp import web

from runtime.errors import InvalidParameter, UnsupportedGrammar
from runtime.generation import GenerationRequest
from runtime.openai.models import blend_of_model, context_of
from runtime.openai.responses.body import ResponseInput, parse_response
from runtime.openai.responses.wire import ResponseFrames, ResponseHead, render_response
from runtime.prompt import gemma
from runtime.prompt.gemma import SystemRole
from runtime.web.answers import Ask, collect, refuse_oversized, stream
from runtime.web.body import parse_json_object
from runtime.web.keys import IGNORED, LIMITS, REQUEST_ID, SETTINGS
from runtime.web.limits import read_body


async def create(request: web.Request) -> web.StreamResponse:
    """``POST /v1/responses``.

    Raises:
        GemlaneError: the body, the model, its adapters or the engine; ``UnsupportedGrammar`` names ``text.format``.
    """
    asked = parse_response(parse_json_object(await read_body(request, request.app[LIMITS])))
    request[IGNORED] = asked.ignored
    generation = _generation(request, asked)
    head = ResponseHead(
        number=request[REQUEST_ID].replace("-", ""),
        created_at=int(time.time()),
        model=asked.model,
        echoed=asked.echoed,
        has_logprobs=asked.n_logprobs is not None,
    )
    try:
        if asked.is_stream:
            return await stream(request, [Ask(generation)], ResponseFrames(head))
        answer = await collect(request, generation)
    except UnsupportedGrammar as error:
        raise UnsupportedGrammar(f"text.format: {error}", "text.format") from None
    return web.Response(body=render_response(head, answer), headers={"Content-Type": "application/json"})


async def no_response(request: web.Request) -> web.StreamResponse:
    """``/v1/responses/{response}`` and everything below it.

    Raises:
        InvalidParameter: always; nothing is stored.
    """
    raise InvalidParameter(f"no response {request.match_info['response'][:200]!r}: this server stores none", "response")


def add_routes(app: web.Application) -> None:
    """The Responses API."""
    for slash in ("", "/"):
        app.router.add_post("/v1/responses" + slash, create)
    for method in ("GET", "POST", "DELETE"):
        app.router.add_route(method, r"/v1/responses/{response:[\s\S]+}", no_response)


def _generation(request: web.Request, asked: ResponseInput) -> GenerationRequest:
    refuse_oversized(request, [message.content for message in asked.messages])
    return GenerationRequest(
        request_id=request[REQUEST_ID],
        prompt=gemma.render(asked.messages, SystemRole(request.app[SETTINGS].system_role)),
        max_tokens=context_of(request) if asked.max_tokens is None else asked.max_tokens,
        sampling=asked.sampling,
        blend=blend_of_model(request, asked.model, asked.lora),
        n_logprobs=asked.n_logprobs,
    )
