"""Around every request: its id, its token, its headers, and the one place where an error becomes a response."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Awaitable, Callable, Sequence

from aiohttp import web

from runtime.errors import GemlaneError, InvalidRequest, MethodNotAllowed, RequestTooLarge, UnknownRoute
from runtime.web.answers import break_off
from runtime.web.dialect import ErrorFormat, format_of
from runtime.web.keys import FIRST_REQUEST_TIMEOUT, REQUEST_ID, STREAM
from runtime.web.tokens import Tokens

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = logging.getLogger(__name__)


def make_middleware(formats: Sequence[ErrorFormat], tokens: Tokens) -> Callable[..., Awaitable[web.StreamResponse]]:
    """The application's only middleware."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        request.app[FIRST_REQUEST_TIMEOUT].end(request)
        error_format = format_of(request, formats)
        request[REQUEST_ID] = str(uuid.uuid4())
        try:
            if not error_format.is_open:
                tokens.check(request.headers)
            return await handler(request)
        except Exception as error:  # noqa: BLE001 - the edge: whatever it is, the client gets an answer
            return await _respond(request, error_format, _typed(error))

    return middleware


def make_prepare_hook(
    formats: Sequence[ErrorFormat],
) -> Callable[[web.BaseRequest, web.StreamResponse], Awaitable[None]]:
    """Adds the headers that every answer of an error format carries, streams included."""

    async def on_prepare(request: web.BaseRequest, response: web.StreamResponse) -> None:
        response.headers["Server"] = "gemlane"
        for name, value in format_of(request, formats).headers(request.get(REQUEST_ID, "")).items():
            response.headers.setdefault(name, value)

    return on_prepare


def _typed(error: Exception) -> Exception:
    """Refusals of aiohttp's own, as errors of ours."""
    match error:
        case web.HTTPNotFound():
            return UnknownRoute("no such path")
        case web.HTTPMethodNotAllowed():
            allowed = frozenset(error.allowed_methods)
            return MethodNotAllowed(f"that path does not know {error.method}", error.method, allowed)
        case web.HTTPRequestEntityTooLarge():
            return RequestTooLarge("the body is over its limit")
        case web.HTTPException() | web.RequestPayloadError():
            return InvalidRequest(f"the request cannot be read: {error}")
        case _:
            return error


async def _respond(request: web.Request, error_format: ErrorFormat, error: Exception) -> web.StreamResponse:
    """The error as the answer, or as the end of the answer that has already begun."""
    stream = request.get(STREAM)
    if isinstance(error, ConnectionError):
        log.info("request %s: the client went away", request[REQUEST_ID])
        return stream if stream is not None else web.Response(status=499)
    if not isinstance(error, GemlaneError):
        log.error("request %s: %s %s", request[REQUEST_ID], request.method, request.path, exc_info=error)
    else:
        log.info("request %s: %s: %s", request[REQUEST_ID], error.code, error)
    if stream is not None:
        return await break_off(request, error)
    answer = error_format.render_error(error, request[REQUEST_ID])
    headers = {"Content-Type": "application/json", **answer.headers}
    if isinstance(error, MethodNotAllowed):
        headers["Allow"] = ", ".join(sorted(error.allowed))
    return web.Response(status=answer.status, body=answer.body, headers=headers)
