"""The Worker binding: what ``env.AI`` calls, in the three forms in which its calls reach a local server.

1. workerd itself: ``/run?version=3``, ``/ai-gateway/run`` and ``/ai-api/models/search``, answers unwrapped.
2. Miniflare's remote proxy: everything at ``/``, the URL in ``MF-URL``, headers as ``MF-Header-<name>``.
3. ``wrangler dev`` up to 4.35.0: ``.../ai/run/proxy``, the URL in ``X-Forwarded``.

Sources: workerd ``src/cloudflare/internal/ai-api.ts``; workers-sdk ``packages/miniflare/src/workers/shared/
remote-bindings-utils.ts``; wrangler 4.35.0, measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from aiohttp import web

from runtime.cloudflare import catalogue
from runtime.cloudflare.errors import render_binding_error
from runtime.cloudflare.routes import headers
from runtime.cloudflare.run import answer, refuse_if_busy
from runtime.cloudflare.wire import check_model, parse_inputs
from runtime.errors import InvalidRequest, MethodNotAllowed, UnknownRoute, UnsupportedVersion
from runtime.web.body import parse_json_object, render_json
from runtime.web.dialect import ErrorAnswer, ErrorFormat
from runtime.web.keys import LIMITS, SETTINGS
from runtime.web.limits import read_body

_RUNS: Final = ("/run", "/ai-gateway/run")
_SEARCH: Final = "/ai-api/models/search"
_PROXY: Final = "/client/v4/accounts/{account}/ai/run/proxy"
_VERSION: Final = 3


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the binding, whichever way it came: the path and query it was made for, and the model it names."""

    path: str
    query: Mapping[str, str]
    model: str


async def direct(request: web.Request) -> web.StreamResponse:
    """A call by workerd itself."""
    return await _serve(request, Call(request.path, request.query, request.headers.get("cf-consn-model-id", "")))


async def proxied(request: web.Request) -> web.StreamResponse:
    """A call by Miniflare's remote proxy; any other POST to ``/`` is unknown.

    Raises:
        UnknownRoute: no ``MF-URL`` came.
    """
    if not is_proxied(request):
        raise UnknownRoute("no such path")
    model = request.headers.get("MF-Header-cf-consn-model-id", "")
    return await _serve(request, _call(request.headers["MF-URL"], model))


def is_proxied(request: web.BaseRequest) -> bool:
    """Whether Miniflare's remote proxy sent this request."""
    return "MF-URL" in request.headers


async def forwarded(request: web.Request) -> web.StreamResponse:
    """A call by an older ``wrangler dev``."""
    model = request.headers.get("cf-consn-model-id", "")
    return await _serve(request, _call(request.headers.get("X-Forwarded", "/run?version=3"), model))


def credentials(request: web.BaseRequest) -> Mapping[str, str]:
    """The headers of a call. Miniflare's remote proxy has none to set: its token stands in the URL it is given."""
    token = request.query.get("token", "") if is_proxied(request) else ""
    if not token or "Authorization" in request.headers:
        return request.headers
    return {**{name.title(): value for name, value in request.headers.items()}, "Authorization": f"Bearer {token}"}


def add_routes(app: web.Application) -> None:
    """The binding's own paths, and those of its proxies; the application registers ``GET /``, which has a page too."""
    for path in _RUNS:
        app.router.add_post(path, direct)
    app.router.add_get(_SEARCH, direct)
    app.router.add_post(_PROXY, forwarded)
    app.router.add_get(_PROXY, forwarded)
    app.router.add_post("/", proxied)


async def _serve(request: web.Request, call: Call) -> web.StreamResponse:
    """Dispatch on the path that the call was made for."""
    if call.path == _SEARCH:
        return catalogue.search(request, call.query)
    if call.path not in _RUNS:
        raise UnknownRoute(f"the binding has no {call.path[:200]}")
    if request.method != "POST":
        raise MethodNotAllowed("a run is a POST; this model has no WebSocket", request.method)
    _check_version(call.query.get("version", ""))
    return await _run(request, call.model)


async def _run(request: web.Request, model: str) -> web.StreamResponse:
    body = parse_json_object(await read_body(request, request.app[LIMITS]))
    options = body.get("options")
    options = options if isinstance(options, dict) else {}
    lora = options.get("lora")  # where workers-ai-provider puts its settings
    run_input = parse_inputs(body.get("inputs"), query_lora=lora if isinstance(lora, str) else "")
    name = model[max(model.find(":@") + 1, 0) :]  # ``options.prefix`` stands before the id, with a colon
    check_model(name, request.app[SETTINGS].cloudflare_model)
    refuse_if_busy(request, options)
    return await answer(request, run_input, render_json)


def _check_version(version: str) -> None:
    """Versions 1 and 2 spoke tensors and gzip; only 3 is served.

    Raises:
        UnsupportedVersion: it is another.
    """
    if version != str(_VERSION):
        raise UnsupportedVersion(f"version {version[:20]!r} of the binding is not served; {_VERSION} is")


def _call(url: str, model: str) -> Call:
    """The call that was made for ``url``.

    Raises:
        InvalidRequest: the URL cannot be read.
    """
    try:
        parts = urlsplit(url)
        return Call(parts.path, dict(parse_qsl(parts.query)), model)
    except ValueError:
        raise InvalidRequest("the forwarded URL cannot be read") from None


def _is_mine(request: web.BaseRequest) -> bool:
    path = request.path.rstrip("/")
    return path in _RUNS or path.endswith("/ai/run/proxy") or (not path and is_proxied(request))


def _render_error(error: Exception, _request_id: str) -> ErrorAnswer:
    fault, body = render_binding_error(error)
    return ErrorAnswer(fault.status, body, {"Retry-After": str(fault.retry_after_s)} if fault.retry_after_s else {})


ERROR_FORMAT: Final = ErrorFormat(
    is_mine=_is_mine, headers=headers, render_error=_render_error, credentials=credentials
)
