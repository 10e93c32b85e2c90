"""Around every request: its id, its token, its headers, and the one place where an error becomes a response."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence

from aiohttp import web

from runtime.errors import GemlaneError, InvalidRequest, MethodNotAllowed, RequestTooLarge, UnknownRoute
from runtime.observe.events import RequestEnded
from runtime.web.answers import break_off
from runtime.web.connection import Connection
from runtime.web.dialect import ErrorFormat, format_of
from runtime.web.keys import HEADERS, IGNORED, OBSERVER, REQUEST_ID, STREAM
from runtime.web.origins import is_preflight, preflight_headers
from runtime.web.tokens import TokenCheck

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = logging.getLogger(__name__)

_CLIENT_WENT_AWAY = 499
"""nginx's status for a client that closed its connection before the answer; it is only logged and counted."""


def make_middleware(formats: Sequence[ErrorFormat], tokens: TokenCheck) -> Callable[..., Awaitable[web.StreamResponse]]:
    """The application's only middleware."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        connection = request.protocol
        if isinstance(connection, Connection):
            connection.begin(request)
        error_format = format_of(request, formats)
        request[REQUEST_ID] = str(uuid.uuid4())
        began_at = time.perf_counter()
        status, code = _CLIENT_WENT_AWAY, ""
        try:
            if is_preflight(request.method, request.headers):
                tokens.check_page(request.headers)
                response: web.StreamResponse = web.Response(status=204, headers=preflight_headers(request.headers))
            else:
                if not error_format.is_open:
                    tokens.check(error_format.credentials(request))
                response = await handler(request)
            status = response.status
        except Exception as error:  # noqa: BLE001 - the edge: the client gets an answer to every exception
            typed = _typed(error, request)
            response = await _respond(request, error_format, typed)
            status, code = response.status, _code_of(typed)
        finally:
            _report(request, status, code, time.perf_counter() - began_at)
            if isinstance(connection, Connection):
                connection.end()
        return response

    return middleware


def _report(request: web.Request, status: int, code: str, elapsed_s: float) -> None:
    """Tell the observer of a request's end."""
    resource = request.match_info.route.resource
    request.app[OBSERVER].observe(
        RequestEnded(
            request_id=request[REQUEST_ID],
            method=request.method,
            path=request.rel_url.raw_path,  # still encoded, so that no line break gets into a log
            route=resource.canonical if resource is not None else "",
            status=status,
            error=code,
            elapsed_s=elapsed_s,
        )
    )


def _code_of(error: Exception) -> str:
    if isinstance(error, ConnectionError):
        return "cancelled"
    return error.code if isinstance(error, GemlaneError) else GemlaneError.code


def make_prepare_hook(
    formats: Sequence[ErrorFormat], tokens: TokenCheck
) -> Callable[[web.BaseRequest, web.StreamResponse], Awaitable[None]]:
    """Adds the headers that every answer carries, streams included: those of its error format, and those for pages."""

    async def on_prepare(request: web.BaseRequest, response: web.StreamResponse) -> None:
        response.headers["Server"] = "gemlane"
        for name, value in format_of(request, formats).headers(request.get(REQUEST_ID, "")).items():
            response.headers.setdefault(name, value)
        for name, value in tokens.cors_headers(request.headers).items():
            response.headers.setdefault(name, value)
        response.headers.update(request.get(HEADERS, {}))
        if ignored := request.get(IGNORED):
            response.headers["x-gemlane-ignored"] = ", ".join(ignored)

    return on_prepare


def _hint(request: web.Request) -> str:
    """The path that was meant: a base URL without ``/v1``, or with two of them, is the usual mistake."""
    path = "/" + request.path.strip("/")
    for meant in (f"/v1{path}", path.removeprefix("/v1")):
        if any(resource.canonical == meant for resource in request.app.router.resources()):
            return f"; {meant} was meant, perhaps"
    return "; GET /openapi.json lists the paths there are"


def _typed(error: Exception, request: web.Request) -> Exception:
    """Refusals of aiohttp's own, as errors of ours."""
    match error:
        case web.HTTPNotFound():
            return UnknownRoute(f"no such path{_hint(request)}")
        case web.HTTPMethodNotAllowed():
            allowed = frozenset(error.allowed_methods)
            return MethodNotAllowed(f"that path does not know {error.method}", error.method, allowed)
        case web.HTTPRequestEntityTooLarge():
            return RequestTooLarge("the body is over its limit")
        case web.RequestPayloadError():
            return InvalidRequest("the body cannot be read: its Content-Encoding or Transfer-Encoding is broken")
        case web.HTTPException():
            return InvalidRequest(f"the request cannot be read: {' '.join(str(error).split())}")
        case _:
            return error


async def _respond(request: web.Request, error_format: ErrorFormat, error: Exception) -> web.StreamResponse:
    """The error as the answer, or as the end of the answer that has already begun."""
    stream = request.get(STREAM)
    if isinstance(error, ConnectionError):
        return stream if stream is not None else web.Response(status=_CLIENT_WENT_AWAY)
    if not isinstance(error, GemlaneError):
        log.error("request %s: %s %s", request[REQUEST_ID], request.method, request.rel_url.raw_path, exc_info=error)
    else:
        log.debug("request %s: %s: %s", request[REQUEST_ID], error.code, error)
    if stream is not None:
        return await break_off(request, error)
    answer = error_format.render_error(error, request[REQUEST_ID])
    headers = {"Content-Type": "application/json", **answer.headers}
    if isinstance(error, MethodNotAllowed):
        headers["Allow"] = ", ".join(sorted(error.allowed))
    return web.Response(status=answer.status, body=answer.body, headers=headers)
