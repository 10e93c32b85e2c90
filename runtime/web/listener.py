"""The listener: accepts connections, limits their number, and the time until the first request is whole.

aiohttp bounds headers, bodies and idle connections. It lacks a limit on connections, and a limit on the time until the
first request is whole: a client that sends a header a minute would keep its connection for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Final

from aiohttp import web
from aiohttp.http import HttpProcessingError

from runtime.web.first_request import FirstRequestTimeout
from runtime.web.keys import FIRST_REQUEST_TIMEOUT, LIMITS

_FULL: Final = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_SHUTDOWN_S: Final = 1.0  # how long handlers may take to end once the application is closed


class _OwnErrors(logging.Filter):
    """Keeps tracebacks for our mistakes; bytes that are not HTTP are answered 400 without a traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, HttpProcessingError)


class Listener:
    """An open address."""

    def __init__(self, server: asyncio.Server) -> None:
        self._server = server
        host, self.port = server.sockets[0].getsockname()[:2]
        self.host = f"[{host}]" if ":" in host else host

    @property
    def url(self) -> str:
        """The address for clients."""
        return f"http://{self.host}:{self.port}"

    def close(self) -> None:
        """Accept no new connection; open connections stay."""
        self._server.close()


@contextlib.asynccontextmanager
async def listen(app: web.Application, host: str, port: int) -> AsyncIterator[Listener]:
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
        make_protocol = _ConnectionFactory(runner, app[FIRST_REQUEST_TIMEOUT], limits.n_connections)
        server = await asyncio.get_running_loop().create_server(make_protocol, host, port, reuse_address=True)
        listener = Listener(server)
        try:
            yield listener
        finally:
            listener.close()
    finally:
        await runner.cleanup()


def _logger() -> logging.Logger:
    logger = logging.getLogger(f"{__name__}.http")
    logger.filters = [_OwnErrors()]
    return logger


class _ConnectionFactory:
    """Makes the protocol of each new connection."""

    def __init__(self, runner: web.AppRunner, first_request: FirstRequestTimeout, n_connections: int) -> None:
        self._runner = runner
        self._first_request = first_request
        self._n_connections = n_connections

    def __call__(self) -> asyncio.Protocol:
        server = self._runner.server
        if server is None or len(server.connections) >= self._n_connections:
            return _Refusal()
        protocol: web.RequestHandler = server()
        self._first_request.begin(protocol)
        return protocol


class _Refusal(asyncio.Protocol):
    """Answers that the connection limit is reached, and closes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.WriteTransport):
            transport.write(_FULL)
            transport.close()
