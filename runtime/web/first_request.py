"""The time limit for a new connection's first whole request."""

from __future__ import annotations

import asyncio

from aiohttp import web


class FirstRequestTimeout:
    """Timers of the connections that have sent no whole request yet; belongs to the event loop."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._timers: dict[object, asyncio.TimerHandle] = {}

    def begin(self, protocol: web.RequestHandler) -> None:
        """A connection was made; it is closed unless a request arrives in time."""
        loop = asyncio.get_running_loop()
        self._timers[protocol] = loop.call_later(self._limit_s, self._cut, protocol)

    def end(self, request: web.Request) -> None:
        """A request arrived over that connection."""
        timer = self._timers.pop(request.protocol, None)
        if timer is not None:
            timer.cancel()

    def _cut(self, protocol: web.RequestHandler) -> None:
        del self._timers[protocol]
        protocol.force_close()
