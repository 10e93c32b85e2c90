"""The door: listening, how many may come in, and how long they may stand there without a word.

aiohttp bounds headers, bodies and idle connections; what it lacks is a limit on connections, and one on the time
until the first request is whole (a client that sends a header a minute would keep its place for ever).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Final

from aiohttp import web
from aiohttp.http import HttpProcessingError

from runtime.web.keys import LIMITS, SILENCE
from runtime.web.silence import Silence

_FULL: Final = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_SHUTDOWN_S: Final = 1.0  # how long handlers may take to end once the application is closed


class _OwnErrors(logging.Filter):
    """Keeps tracebacks for our mistakes; a client that speaks no HTTP is answered 400 and needs none."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, HttpProcessingError)


class Door:
    """An address that is being listened on."""

    def __init__(self, server: asyncio.Server) -> None:
        self._server = server
        host, self.port = server.sockets[0].getsockname()[:2]
        self.host = f"[{host}]" if ":" in host else host

    @property
    def url(self) -> str:
        """Where clients may knock."""
        return f"http://{self.host}:{self.port}"

    def close(self) -> None:
        """Let nobody in any more; those inside stay."""
        self._server.close()


@contextlib.asynccontextmanager
async def open_door(app: web.Application, host: str, port: int) -> AsyncIterator[Door]:
    """Serve ``app`` on an address while the context lasts; port 0 is any free one.

    A client that goes away cancels its handler, which frees its sequence.

    Raises:
        OSError: the address cannot be listened on.
    """
    limits = app[LIMITS]
    runner = web.AppRunner(
        app,
        access_log=None,
        logger=_logger(),
        handler_cancellation=True,
        shutdown_timeout=_SHUTDOWN_S,
        keepalive_timeout=limits.idle_s,
        max_line_size=limits.header_line_bytes,
        max_field_size=limits.header_line_bytes,
        max_headers=limits.n_headers,
    )
    await runner.setup()
    try:
        make_protocol = _Doorkeeper(runner, app[SILENCE], limits.n_connections)
        server = await asyncio.get_running_loop().create_server(make_protocol, host, port, reuse_address=True)
        door = Door(server)
        try:
            yield door
        finally:
            door.close()
    finally:
        await runner.cleanup()


def _logger() -> logging.Logger:
    logger = logging.getLogger(f"{__name__}.http")
    logger.filters = [_OwnErrors()]
    return logger


class _Doorkeeper:
    """Makes the protocol of each new connection."""

    def __init__(self, runner: web.AppRunner, silence: Silence, n_connections: int) -> None:
        self._runner = runner
        self._silence = silence
        self._n_connections = n_connections

    def __call__(self) -> asyncio.Protocol:
        server = self._runner.server
        if server is None or len(server.connections) >= self._n_connections:
            return _Refusal()
        protocol: web.RequestHandler = server()
        self._silence.begin(protocol)
        return protocol


class _Refusal(asyncio.Protocol):
    """Says that the house is full, and hangs up."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.WriteTransport):
            transport.write(_FULL)
            transport.close()
