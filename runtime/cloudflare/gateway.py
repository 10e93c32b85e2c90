"""AI Gateway's own endpoints, for clients whose host is rewritten: ``/v1/{account}/{gateway}/...``.

``compat/chat/completions`` names its model ``workers-ai/<id>``. The universal endpoint, at the gateway's own path,
takes a list of requests to providers and answers with the first that succeeds. Source: docs
"ai-gateway/usage/universal" and "ai-gateway/usage/chat-completion".
"""

from __future__ import annotations

from typing import Any, Final

from aiohttp import web

from runtime.cloudflare.chat import answer_chat
from runtime.cloudflare.errors import render_rest_error
from runtime.cloudflare.routes import headers
from runtime.cloudflare.run import answer
from runtime.cloudflare.wire import check_model, parse_inputs, render_envelope
from runtime.errors import GemlaneError, InvalidRequest, UnknownModel
from runtime.web.body import parse_json, parse_json_object
from runtime.web.dialect import ErrorAnswer, ErrorFormat
from runtime.web.keys import HEADERS, LIMITS, SETTINGS, STREAM, TOKENS
from runtime.web.limits import read_body

_PROVIDER: Final = "workers-ai"
_CHAT: Final = "v1/chat/completions"
_OPENAI: Final = ("chat", "completions", "models", "responses", "embeddings", "v1")
"""Names below ``/v1`` that are OpenAI's, or a slip of its clients; no account has such a name."""
_ROOT: Final = "/v1/{account:(?!(?:" + "|".join(_OPENAI) + ")/)[^/]+}/{gateway}"
_MAX_STEPS: Final = 16
_N_PARTS: Final = 3


async def compat_chat(request: web.Request) -> web.StreamResponse:
    """``POST .../compat/chat/completions``."""
    body = parse_json_object(await read_body(request, request.app[LIMITS]))
    model = body.get("model")
    if isinstance(model, str):
        body = {**body, "model": model.removeprefix(f"{_PROVIDER}/")}
    return await answer_chat(request, body)


async def universal(request: web.Request) -> web.StreamResponse:
    """``POST /v1/{account}/{gateway}``: the first step that succeeds; its number stands in ``cf-aig-step``.

    Raises:
        GemlaneError: the list cannot be read, or the error of the last step.
    """
    steps = parse_json(await read_body(request, request.app[LIMITS]))
    if not isinstance(steps, list) or not 0 < len(steps) <= _MAX_STEPS:
        raise InvalidRequest(f"the body must be a list of 1 to {_MAX_STEPS} requests to providers")
    failure: GemlaneError = InvalidRequest("no step was tried")
    for number, step in enumerate(steps):
        request[HEADERS] = {"cf-aig-step": str(number)}
        try:
            return await _run_step(request, step)
        except GemlaneError as error:
            if STREAM in request:
                raise  # the client has a part of this step's answer
            failure = error
    raise failure


def add_routes(app: web.Application) -> None:
    """The two endpoints."""
    for slash in ("", "/"):
        app.router.add_post(_ROOT + "/compat/chat/completions" + slash, compat_chat)
        app.router.add_post(_ROOT + slash, universal)


async def _run_step(request: web.Request, step: Any) -> web.StreamResponse:
    if not isinstance(step, dict) or not isinstance(step.get("endpoint"), str):
        raise InvalidRequest("each step must be an object with a provider, an endpoint and a query")
    if step.get("provider") != _PROVIDER:
        raise UnknownModel("this server has only the provider workers-ai", str(step.get("provider")))
    given = step.get("headers")
    own = given.items() if isinstance(given, dict) else ()
    # A provider's token travels in its step; the gateway itself may need none.
    came = {name.title(): value for name, value in (*request.headers.items(), *own) if isinstance(value, str)}
    request.app[TOKENS].check(came)
    query, endpoint = step.get("query"), step["endpoint"].strip("/").removeprefix("run/")
    if endpoint == _CHAT:
        return await answer_chat(request, query if isinstance(query, dict) else {})
    run_input = parse_inputs(query)
    check_model(endpoint, request.app[SETTINGS].cloudflare_model)
    return await answer(request, run_input, render_envelope)


def _is_universal(request: web.BaseRequest) -> bool:
    parts = request.rel_url.raw_path.strip("/").split("/")
    return request.method == "POST" and len(parts) == _N_PARTS and parts[0] == "v1" and parts[1] not in _OPENAI


def _render_error(error: Exception, request_id: str) -> ErrorAnswer:
    fault, body = render_rest_error(error, request_id)
    retry = {"Retry-After": str(fault.retry_after_s)} if fault.retry_after_s else {}
    return ErrorAnswer(fault.status, body, retry)


ERROR_FORMAT: Final = ErrorFormat(_is_universal, headers, _render_error, is_open=True)
"""Errors are those of REST; the tokens are checked step by step."""
