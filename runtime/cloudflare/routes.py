"""The REST surface of Workers AI: ``/client/v4/accounts/{account}/ai/...``."""

from __future__ import annotations

import re
from typing import Final

from aiohttp import web

from runtime.cloudflare.chat import chat_completions, no_list, other_models_only
from runtime.cloudflare.errors import render_rest_error
from runtime.cloudflare.run import answer, refuse_if_busy
from runtime.cloudflare.wire import check_model, parse_inputs, render_envelope
from runtime.web.body import parse_json
from runtime.web.dialect import ErrorAnswer, ErrorFormat
from runtime.web.keys import LIMITS, SETTINGS
from runtime.web.limits import read_body

_GATEWAY: Final = "/v1/{account}/{gateway}/workers-ai"  # AI Gateway's, for clients whose host is rewritten
_OURS: Final = re.compile(r"/client/v4/.*|/ai-api/.*|/v1/[^/]+/[^/]+/(workers-ai|compat)/.*", re.DOTALL)
_AI: Final = "/client/v4/accounts/{account}/ai"


async def run(request: web.Request) -> web.StreamResponse:
    """``POST .../ai/run/{model}``, the model's id plain or percent-encoded, with or without a trailing slash."""
    inputs = parse_json(await read_body(request, request.app[LIMITS]))
    run_input = parse_inputs(inputs, query_lora=request.query.get("lora", ""))
    check_model(request.match_info["model"].rstrip("/"), request.app[SETTINGS].cloudflare_model)
    if isinstance(inputs, dict):
        refuse_if_busy(request, inputs.get("options"))
    return await answer(request, run_input, render_envelope)


def add_routes(app: web.Application) -> None:
    """The model's own route, and its OpenAI-like one."""
    for slash in ("", "/"):
        app.router.add_post(_GATEWAY + "/v1/chat/completions" + slash, chat_completions)
        app.router.add_post(_AI + "/v1/chat/completions" + slash, chat_completions)
        app.router.add_post(_AI + "/v1/embeddings" + slash, other_models_only)
        app.router.add_post(_AI + "/v1/responses" + slash, other_models_only)
        app.router.add_get(_AI + "/v1/models" + slash, no_list)
    app.router.add_post(_AI + "/run/{model:.+}", run)
    app.router.add_post(_GATEWAY + "/{model:.+}", run)


def headers(request_id: str) -> dict[str, str]:
    """What every answer of the original carries; ``cf-ray`` is 16 hexadecimal digits and a place."""
    return {"cf-ai-req-id": request_id, "cf-ray": f"{request_id.replace('-', '')[:16]}-LAN"}


def _render_error(error: Exception, request_id: str) -> ErrorAnswer:
    fault, body = render_rest_error(error, request_id)
    retry = {"Retry-After": str(fault.retry_after_s)} if fault.retry_after_s else {}
    return ErrorAnswer(fault.status, body, retry)


ERROR_FORMAT: Final = ErrorFormat(
    lambda request: _OURS.fullmatch(request.rel_url.raw_path) is not None, headers, _render_error
)
