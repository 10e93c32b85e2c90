"""Which connections are open, whose they are, and which one is closed for a new one. Pure: the caller gives the time.

A connection is *working* from a request's headers to its answer, and *idle* before and after. One client may hold half
of all places, so that no client fills the server. A new connection without a place gets that of an idle connection of
the client that holds most: first of one that never sent a request, then of the one that has been idle longest. A
connection that became idle a moment ago keeps its place, since its next request may be under way.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections import Counter
from typing import Any, Final, Protocol

MIN_UNUSED_S: Final = 1.0
"""How long a connection has sent no request before it gives way."""
MIN_IDLE_S: Final = 5.0
"""How long a connection has been idle after a request before it gives way."""


class Place(Protocol):
    """What the table knows of a connection."""

    client: str
    """Who holds it, as `client_of` says."""
    n_requests: int
    since: float
    """When it was made or, after its first request, last used; on the event loop's clock."""

    @property
    def is_working(self) -> bool:
        """Whether it is being opened, or a request is being answered."""

    def give_way(self) -> None:
        """Lose the place."""


class Connections:
    """The open connections of a server, and those being refused. Belongs to the event loop."""

    def __init__(self, max_served: int, max_refused: int) -> None:
        self._max_served = max_served
        self._max_refused = max_refused
        self._served: dict[Place, None] = {}
        self._refused: set[object] = set()
        self._n_of_client: Counter[str] = Counter()
        self._someone_left = asyncio.Event()

    def make_place(self, client: str, now: float) -> float:
        """Seconds until ``client`` gets one more place; 0: it has one, for which an idle connection may have left."""
        has_share = self._n_of_client[client] < self._share_of(client)
        if has_share and len(self._served) < self._max_served:
            return 0.0
        idle = [place for place in self._served if not place.is_working and (has_share or place.client == client)]
        may_leave = [place for place in idle if _stays_until(place) <= now]
        if not may_leave:
            return min((_stays_until(place) - now for place in idle), default=MIN_UNUSED_S)
        leaving = min(may_leave, key=self._order)
        self.remove(leaving)
        leaving.give_way()
        return 0.0

    def add(self, place: Place) -> None:
        """Keep an admitted connection until it is removed."""
        self._served[place] = None
        self._n_of_client[place.client] += 1

    def add_refused(self, refusal: object) -> None:
        """Keep a connection that is being refused until it is removed."""
        self._refused.add(refusal)

    def remove(self, connection: Any) -> None:
        """Forget a connection of either kind; one that is not known, or no longer, is passed over."""
        if connection in self._served:
            del self._served[connection]
            self._n_of_client[connection.client] -= 1
            if not self._n_of_client[connection.client]:
                del self._n_of_client[connection.client]
        self._refused.discard(connection)
        self._someone_left.set()

    async def wait_for_room(self) -> None:
        """Wait until one more connection can be accepted, to be served or refused."""
        while len(self._refused) >= self._max_refused:
            self._someone_left.clear()
            await self._someone_left.wait()

    def _order(self, place: Place) -> tuple[int, bool, float]:
        """The smallest one gives way first."""
        return -self._n_of_client[place.client], place.n_requests > 0, place.since

    def _share_of(self, client: str) -> int:
        """How many connections a client may hold; a Unix socket has only clients of this user."""
        return max(self._max_served // 2, 1) if client else self._max_served


def _stays_until(place: Place) -> float:
    return place.since + (MIN_IDLE_S if place.n_requests else MIN_UNUSED_S)


def client_of(address: object) -> str:
    """Who connects from a socket's ``address``: an IPv4 address, the first half of an IPv6 one, "" on a Unix socket.

    A household or a machine is given a whole /64 of IPv6 (RFC 6177), so its addresses count as one client.
    """
    if not isinstance(address, tuple):
        return ""
    host = ipaddress.ip_address(str(address[0]).partition("%")[0])
    if isinstance(host, ipaddress.IPv4Address):
        return str(host)
    return str(host.ipv4_mapped or ipaddress.IPv6Address(int(host) >> 64 << 64))
