"""How long a new connection may stay without one whole request."""

from __future__ import annotations

import asyncio

from aiohttp import web


class Silence:
    """Timers of the connections that have not yet spoken; belongs to the event loop."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._timers: dict[object, asyncio.TimerHandle] = {}

    def begin(self, protocol: web.RequestHandler) -> None:
        """A connection was made; unless it is heard of in time, it is closed."""
        loop = asyncio.get_running_loop()
        self._timers[protocol] = loop.call_later(self._limit_s, self._cut, protocol)

    def end(self, request: web.Request) -> None:
        """A request came over that connection."""
        timer = self._timers.pop(request.protocol, None)
        if timer is not None:
            timer.cancel()

    def _cut(self, protocol: web.RequestHandler) -> None:
        del self._timers[protocol]
        protocol.force_close()
