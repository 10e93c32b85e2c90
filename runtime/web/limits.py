"""Every limit on clients in one place: sizes, times, connections."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from runtime.config import ServerSettings
from runtime.errors import InvalidRequest, RequestTimeout, RequestTooLarge

ENCODING_RULE: Final = "a body's Content-Encoding may be gzip or deflate; send it as it is, or as one of them"
_DECODED: Final = ("", "identity", "gzip", "deflate")  # by aiohttp, which lets unknown ones pass as they are


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """What a client may take. Sizes in bytes, times in seconds."""

    body_bytes: int = 4 << 20
    """A request body; uploads have their own limit."""
    header_line_bytes: int = 8190
    """The request line, and each header."""
    n_headers: int = 100
    header_s: float = 20.0
    """Time from connecting to the last header of the first request."""
    body_s: float = 60.0
    """Time from the last header to the last byte of a body; uploads have ``upload_s``."""
    upload_s: float = 1800.0
    idle_s: float = 75.0
    """Time between two requests of one connection."""
    write_s: float = 30.0
    """How long a client may leave a full send buffer unread before it is cut."""
    request_s: float = 600.0
    """Time for a whole answer, waiting in the queue included."""
    n_connections: int = 2000
    """Connections that are served at a time; one client may hold half of them."""


def limits_of(settings: ServerSettings) -> HttpLimits:
    """The limits that the settings ask for; the rest as declared."""
    return HttpLimits(body_bytes=settings.max_body_mib << 20, request_s=float(settings.request_timeout_s))


async def read_body(request: web.Request, limits: HttpLimits) -> bytes:
    """The whole body.

    Raises:
        InvalidRequest: its encoding is unknown.
        RequestTooLarge: more than ``limits.body_bytes``.
        RequestTimeout: it did not come within ``limits.body_s``.
    """
    if request.headers.get("Content-Encoding", "").strip().lower() not in _DECODED:
        raise InvalidRequest(ENCODING_RULE)
    try:
        async with asyncio.timeout(limits.body_s):
            return await request.read()
    except TimeoutError:
        raise RequestTimeout(f"the body did not come within {limits.body_s:g} s") from None
    except web.HTTPRequestEntityTooLarge:
        raise RequestTooLarge(f"the body may hold {limits.body_bytes} bytes at most") from None
