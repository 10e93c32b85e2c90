"""One connection: aiohttp's protocol, with its place among all, its first-request timeout, and half-closed clients.

A client that half-closes (ends its side of the connection after its request) gets its answer. TCP shows the same for a
client that went away. So while nothing of the answer is sent, the server sends the interim response 100: a client that
is there discards it (RFC 9110, 15.2.1), and the machine of one that is not answers with a reset, which cancels the
request. HTTP/1.0 knows no interim responses, and in the middle of a stream none can be sent: a client that half-closes
there counts as one that went away.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any, Final

from aiohttp import web
from aiohttp.http import HttpVersion11
from aiohttp.http_exceptions import ContentEncodingError

from runtime.errors import InvalidRequest, Overloaded
from runtime.web import plain
from runtime.web.connections import MIN_UNUSED_S, Connections
from runtime.web.limits import ENCODING_RULE

_SERVER_ERROR: Final = 500
_MAX_ECHO: Final = 200
_INTERIM: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_ASK_AFTER_S: Final = (0.05, 0.1, 1.0)
"""Seconds before each interim response; the last one repeats. The second one finds the reset that the first causes."""
_LINGER_S: Final = 2.0
"""How long a connection without a place is kept: for its first request, and until the client has read the answer."""


class Connection(web.RequestHandler):
    """A connection that is served. The middleware says when its requests begin and end."""

    __slots__ = (
        "_connections",
        "_is_fed",
        "_is_half_closed",
        "_question",
        "_request",
        "_timer",
        "client",
        "n_requests",
        "since",
    )

    def __init__(self, server: web.Server, connections: Connections, client: str, **options: Any) -> None:
        """A connection of ``client``; ``options`` are aiohttp's."""
        super().__init__(server, loop=asyncio.get_running_loop(), **options)
        self._connections = connections
        self._request: web.BaseRequest | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._question: asyncio.TimerHandle | None = None
        self._is_fed = self._is_half_closed = False
        self.client, self.n_requests, self.since = client, 0, self._loop.time()

    @property
    def is_working(self) -> bool:
        """Whether it is being opened, or a request is being answered."""
        return self.transport is None or self._request is not None or bool(self._messages)

    def limit_first_request(self, limit_s: float) -> None:
        """Close the connection unless its first request is whole within ``limit_s`` seconds."""
        self._timer = self._loop.call_later(limit_s, self.force_close)

    def begin(self, request: web.BaseRequest) -> None:
        """The headers of a request have come."""
        self._stop_timer()
        self._request = request
        self.n_requests += 1
        if self._is_half_closed:
            self._ask_later(0)

    def end(self) -> None:
        """The request is answered, apart from what is still to be sent."""
        self._request, self._is_fed, self.since = None, False, self._loop.time()
        if self._is_half_closed and not self._messages:
            self.close()

    def give_way(self) -> None:
        """Become a refusal, so that a request that is under way is answered and not reset."""
        transport, self.transport = self.transport, None
        assert transport is not None
        refusal = Refusal(self._connections, MIN_UNUSED_S)
        transport.set_protocol(refusal)
        refusal.connection_made(transport)
        self.connection_lost(None)

    def data_received(self, data: bytes) -> None:
        """Bytes came; an event of the transport."""
        self._is_fed = self._is_fed or bool(data)
        if self.n_requests:
            self.since = self._loop.time()
        super().data_received(data)

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio's own protocol says so
        """The client has ended its input; an event of the transport. True keeps the connection open."""
        transport = self.transport
        if transport is None or transport.get_extra_info("sslcontext") or not self._is_fed or self._has_begun():
            return False
        self._is_half_closed = True
        self._ask_later(0)
        return True

    def connection_lost(self, exc: BaseException | None) -> None:
        """The connection is closed; an event of the transport."""
        self._stop_timer()
        if self._question is not None:
            self._question.cancel()
        self._connections.remove(self)
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer a request that aiohttp could not read, as JSON in our words, and close the connection."""
        refusal = super().handle_error(request, status, exc, message)
        if status >= _SERVER_ERROR:
            return refusal
        words = " ".join((message or "the request cannot be read").split())
        if isinstance(exc, ContentEncodingError):
            return _refuse(status, ENCODING_RULE)
        return _refuse(status, f"this is not HTTP as the server reads it: {words[:_MAX_ECHO]}")

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer; aiohttp refuses an Expect header before any handler sees it, and gets our words."""
        if isinstance(resp, web.HTTPExpectationFailed):
            resp = _refuse(resp.status, "the only expectation that the server meets is 100-continue")
        return await super().finish_response(request, resp, start_time)

    def _has_begun(self) -> bool:
        """Whether bytes of the present answer were sent."""
        return self._request is not None and self._request.writer.output_size > 0

    def _ask_later(self, n_asked: int) -> None:
        if self._question is not None:
            self._question.cancel()
        wait_s = _ASK_AFTER_S[min(n_asked, len(_ASK_AFTER_S) - 1)]
        self._question = self._loop.call_later(wait_s, self._ask, n_asked)

    def _ask(self, n_asked: int) -> None:
        """Find out whether a half-closed client is there; close where no answer is due, or it cannot be asked."""
        request, transport = self._request, self.transport
        if transport is None or self._has_begun():
            return
        if request is None or request.version < HttpVersion11 or not request.content.is_eof():
            self.force_close()
            return
        transport.write(_INTERIM)
        self._ask_later(n_asked + 1)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _refuse(status: int, words: str) -> web.Response:
    """A refusal of aiohttp's as JSON in our words; the connection closes after it."""
    answer = plain.render_error(InvalidRequest(words), "")
    response = web.Response(status=status, body=answer.body, headers={"Content-Type": "application/json"})
    response.headers["Server"] = "gemlane"
    response.force_close()
    return response


class Refusal(asyncio.Protocol):
    """A connection without a place: its next request is answered 429, and the rest is read, so that nothing resets."""

    def __init__(self, connections: Connections, wait_s: float) -> None:
        """A refusal that tells its client to come back in ``wait_s`` seconds."""
        self._connections, self._wait_s = connections, max(math.ceil(wait_s), 1)
        connections.add_refused(self)
        self._transport: asyncio.Transport | None = None
        self._is_answered = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is open; an event of the transport."""
        if isinstance(transport, asyncio.Transport):
            self._transport = transport
            asyncio.get_running_loop().call_later(_LINGER_S, transport.close)

    def data_received(self, _data: bytes) -> None:
        """Bytes came; an event of the transport."""
        if self._is_answered or self._transport is None:
            return
        self._is_answered = True
        self._transport.write(_render_refusal(self._wait_s))
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def connection_lost(self, _exc: BaseException | None) -> None:
        """The connection is closed; an event of the transport."""
        self._connections.remove(self)


def _render_refusal(wait_s: int) -> bytes:
    words = f"too many connections are open; close idle ones, or try again in {wait_s} s"
    body = plain.render_error(Overloaded(words), "").body
    lines = (
        "HTTP/1.1 429 Too Many Requests",
        "Server: gemlane",
        f"Retry-After: {wait_s}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Connection: close",
    )
    return "\r\n".join((*lines, "", "")).encode() + body
