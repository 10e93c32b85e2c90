"""The listener: binds an address and accepts connections, as many as there is room for; others wait in the kernel.

aiohttp bounds headers, bodies and idle connections. It lacks a limit on connections, and a limit on the time until the
first request is whole: a client that sends a header a minute would keep its connection for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import math
import os
import resource
import socket
import ssl
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

from aiohttp import web
from aiohttp.http import HttpProcessingError

from runtime.web.connection import Connection, Refusal
from runtime.web.connections import Connections, client_of
from runtime.web.keys import LIMITS
from runtime.web.limits import HttpLimits

log = logging.getLogger(__name__)

_BACKLOG: Final = 4096  # connections that wait in the kernel; its own limit may be lower
_RETRY_S: Final = 0.2  # after the system had no descriptor or memory for a connection
_RESERVED_FILES: Final = 256  # descriptors for everything but connections
_REPORT_S: Final = 60.0  # between two warnings of refused connections
_SHUTDOWN_S: Final = 1.0  # how long handlers may take to end once the application is closed


class _OwnErrors(logging.Filter):
    """Keeps tracebacks for our mistakes; bytes that are not HTTP are answered 400 without a traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, HttpProcessingError | web.RequestPayloadError)


class Listener:
    """An open address."""

    def __init__(self, sockets: list[socket.socket], scheme: str, serve: Callable[[socket.socket], None]) -> None:
        """Accept on ``sockets``; ``serve`` takes each connection."""
        self._sockets = sockets
        self._scheme = scheme
        self._serve = serve
        self._accepting: list[asyncio.Task[None]] = []

    @property
    def url(self) -> str:
        """The address for clients: ``http://``, ``https://`` or ``unix:PATH``."""
        name = self._sockets[0].getsockname()
        if isinstance(name, str):
            return f"unix:{name}"
        host, port = name[:2]
        return f"{self._scheme}://[{host}]:{port}" if ":" in host else f"{self._scheme}://{host}:{port}"

    def open(self, connections: Connections) -> None:
        """Accept connections while ``connections`` has room."""
        self._accepting = [asyncio.create_task(self._accept(each, connections)) for each in self._sockets]

    def close(self) -> None:
        """Accept no new connection; open connections stay."""
        for task in self._accepting:
            task.cancel()
        for each in self._sockets:
            each.close()

    async def _accept(self, listening: socket.socket, connections: Connections) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await connections.wait_for_room()
            try:
                self._serve((await loop.sock_accept(listening))[0])
            except OSError as error:
                log.warning("a connection was not accepted: %s", error.strerror)
                await asyncio.sleep(_RETRY_S)


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
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=_SHUTDOWN_S)
    await runner.setup()
    assert runner.server is not None
    try:
        n_places = _n_places(limits.n_connections)
        connections = Connections(n_places, n_places)
        sockets = [bind_socket(socket_path)] if socket_path else await _bind(host, port)
        serve = _Server(runner.server, connections, limits, tls).serve
        listener = Listener(sockets, "http" if tls is None else "https", serve)
        try:
            for each in sockets:
                each.listen(_BACKLOG)
                each.settimeout(0)
            listener.open(connections)
            yield listener
        finally:
            listener.close()
            _remove_socket(socket_path)
    finally:
        await runner.cleanup()


async def _bind(host: str, port: int) -> list[socket.socket]:
    """Sockets of every address that ``host`` stands for, bound by asyncio, whose own accepting knows no pause."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(asyncio.Protocol, host, port, reuse_address=True, start_serving=False)
    sockets = [each.dup() for each in server.sockets]
    server.close()
    return sockets


def _n_places(wanted: int) -> int:
    """How many connections can be served, and as many be refused at a time, with the descriptors of this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * wanted + _RESERVED_FILES
    if soft < needed and soft != resource.RLIM_INFINITY:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max(min(wanted, (soft - _RESERVED_FILES) // 2), 1) if soft != resource.RLIM_INFINITY else wanted


class _Server:
    """Gives each accepted socket its protocol: that of a served connection, or a refusal."""

    def __init__(
        self, server: web.Server, connections: Connections, limits: HttpLimits, tls: ssl.SSLContext | None
    ) -> None:
        self._server, self._connections, self._limits, self._tls = server, connections, limits, tls
        self._logger = _logger()
        self._opening: set[asyncio.Task[None]] = set()
        self._report_at = -math.inf

    def serve(self, accepted: socket.socket) -> None:
        """Begin to serve, or to refuse, the client of a socket."""
        try:
            client = client_of(accepted.getpeername())
        except OSError:
            accepted.close()  # it has left already
            return
        task = asyncio.create_task(self._open(accepted, self._protocol(client)))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    def _protocol(self, client: str) -> Connection | Refusal:
        now = asyncio.get_running_loop().time()
        if (wait_s := self._connections.make_place(client, now)) > 0:
            if now >= self._report_at:
                self._report_at = now + _REPORT_S
                log.warning("connections of %s are refused: too many are open", client or "this user")
            return Refusal(self._connections, wait_s)
        connection = Connection(
            self._server,
            self._connections,
            client,
            access_log=None,
            logger=self._logger,
            keepalive_timeout=self._limits.idle_s,
            max_line_size=self._limits.header_line_bytes,
            max_field_size=self._limits.header_line_bytes,
            max_headers=self._limits.n_headers,
        )
        connection.limit_first_request(self._limits.header_s)
        self._connections.add(connection)
        return connection

    async def _open(self, accepted: socket.socket, protocol: Connection | Refusal) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: protocol,
                accepted,
                ssl=self._tls,
                ssl_handshake_timeout=self._limits.header_s if self._tls else None,
            )
        except OSError as error:  # TLS errors and timeouts included
            self._connections.remove(protocol)
            log.debug("a connection was not opened: %s", error)
            accepted.close()


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
