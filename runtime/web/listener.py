"""The listener: accepts connections, limits their number, and the time until the first request is whole.

aiohttp bounds headers, bodies and idle connections. It lacks a limit on connections, and a limit on the time until the
first request is whole: a client that sends a header a minute would keep its connection for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import ssl
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from aiohttp import web
from aiohttp.http import HttpProcessingError

from runtime.errors import InvalidRequest
from runtime.web import plain
from runtime.web.first_request import FirstRequestTimeout
from runtime.web.keys import FIRST_REQUEST_TIMEOUT, LIMITS

_FULL: Final = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_SERVER_ERROR: Final = 500
_MAX_ECHO: Final = 200
_SHUTDOWN_S: Final = 1.0  # how long handlers may take to end once the application is closed


class _OwnErrors(logging.Filter):
    """Keeps tracebacks for our mistakes; bytes that are not HTTP are answered 400 without a traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, HttpProcessingError | web.RequestPayloadError)


class _Connection(web.RequestHandler):
    """aiohttp's protocol of one connection; bytes that are not HTTP are refused as JSON, in our words."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer a request that aiohttp could not read, and close the connection."""
        refusal = super().handle_error(request, status, exc, message)
        if status >= _SERVER_ERROR:
            return refusal
        words = " ".join((message or "the request cannot be read").split())
        answer = plain.render_error(InvalidRequest(f"this is not HTTP as the server reads it: {words[:_MAX_ECHO]}"), "")
        response = web.Response(status=status, body=answer.body, headers={"Content-Type": "application/json"})
        response.headers["Server"] = "gemlane"
        response.force_close()
        return response


class Listener:
    """An open address."""

    def __init__(self, server: asyncio.Server, scheme: str) -> None:
        self._server = server
        self._scheme = scheme

    @property
    def url(self) -> str:
        """The address for clients: ``http://``, ``https://`` or ``unix:PATH``."""
        name = self._server.sockets[0].getsockname()
        if isinstance(name, str):
            return f"unix:{name}"
        host, port = name[:2]
        return f"{self._scheme}://[{host}]:{port}" if ":" in host else f"{self._scheme}://{host}:{port}"

    def close(self) -> None:
        """Accept no new connection; open connections stay."""
        self._server.close()


@contextlib.asynccontextmanager
async def listen(
    app: web.Application, host: str, port: int, *, tls: ssl.SSLContext | None = None, socket_path: str = ""
) -> AsyncIterator[Listener]:
    """Serve ``app`` on an address while the context lasts.

    A client that goes away cancels its handler, which frees its sequence.

    Args:
        app: the application.
        host: the address to listen on.
        port: the port; 0 is any free one.
        tls: certificate and key, for https.
        socket_path: a Unix socket to listen on instead of host and port; only this user may connect to it.

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
        loop = asyncio.get_running_loop()
        if socket_path:
            server = await loop.create_unix_server(make_protocol, sock=bind_socket(socket_path), ssl=tls)
        else:
            server = await loop.create_server(make_protocol, host, port, reuse_address=True, ssl=tls)
        listener = Listener(server, "http" if tls is None else "https")
        try:
            yield listener
        finally:
            listener.close()
            _remove_socket(socket_path)
    finally:
        await runner.cleanup()


def bind_socket(path: str) -> socket.socket:
    """A Unix socket at ``path`` that only this user may connect to. A socket without a listener is replaced.

    Raises:
        OSError: something else lies there, another server listens there, or the folder cannot be written.
    """
    if os.path.lexists(path):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OSError(errno.EEXIST, "a file that is not a socket is there")
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                Path(path).unlink()  # left behind by a server that was killed
            else:
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    listening = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        listening.bind(path)
    except OSError:
        listening.close()
        raise
    finally:
        os.umask(before)
    return listening


def _remove_socket(path: str) -> None:
    if path:
        Path(path).unlink(missing_ok=True)


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
        protocol.__class__ = _Connection  # aiohttp offers no factory of its own for its protocol
        self._first_request.begin(protocol)
        return protocol


class _Refusal(asyncio.Protocol):
    """Answers that the connection limit is reached, and closes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.WriteTransport):
            transport.write(_FULL)
            transport.close()
