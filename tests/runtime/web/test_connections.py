"""Who gets a place, and who gives way: without sockets or a clock."""

import asyncio

import pytest

from runtime.web.connections import MIN_IDLE_S, MIN_UNUSED_S, Connections, client_of


class Seat:
    """A connection that records that it gave way."""

    def __init__(self, client: str, since: float = 0.0, n_requests: int = 0, *, is_working: bool = False) -> None:
        self.client, self.since, self.n_requests, self.is_working = client, since, n_requests, is_working
        self.is_closed = False

    def give_way(self) -> None:
        self.is_closed = True


def full_of(*seats: Seat) -> Connections:
    """A table in which these hold all the places."""
    connections = Connections(len(seats), 1)
    for seat in seats:
        connections.add(seat)
    return connections


def closed(seats: list[Seat]) -> list[int]:
    """The numbers of those that gave way."""
    return [number for number, seat in enumerate(seats) if seat.is_closed]


def test_one_client_gets_half_of_the_places() -> None:
    """A client's connections beyond half of the places are refused, and another client still gets one."""
    connections = Connections(4, 1)
    for _ in range(2):
        assert connections.make_place("a", 0) == 0
        connections.add(Seat("a", is_working=True))
    assert connections.make_place("a", 100) > 0
    assert connections.make_place("b", 100) == 0


def test_clients_of_a_unix_socket_share_all_places() -> None:
    """Without an address there is one user, who may hold every place."""
    connections = Connections(2, 1)
    connections.add(Seat(""))
    assert connections.make_place("", 0) == 0


def test_a_connection_that_asked_nothing_gives_way_first() -> None:
    """Among idle connections the unused one goes before used ones, however long those have been idle."""
    seats = [Seat("a", 0, 1), Seat("b", 5), Seat("c", 4, 1), Seat("d", is_working=True)]
    connections = full_of(*seats)
    assert connections.make_place("e", 10) == 0
    assert closed(seats) == [1]


def test_the_longest_idle_connection_gives_way() -> None:
    """Among used connections the one that has been idle longest goes; its place is free at once."""
    seats = [Seat("a", 3, 1), Seat("b", 2, 1), Seat("c", 0, 1, is_working=True), Seat("d", 4, 1)]
    connections = full_of(*seats)
    assert connections.make_place("e", 10) == 0
    connections.add(Seat("e", 10))
    assert closed(seats) == [1]
    assert connections.make_place("f", 10) == 0
    assert closed(seats) == [0, 1]


def test_working_and_fresh_connections_stay() -> None:
    """A connection stays while it works, for a second after it was made, and for five after its last request."""
    seats = [Seat("a", 10 - MIN_UNUSED_S / 2), Seat("b", 10 - MIN_IDLE_S / 2, 1), Seat("c", 0, 1, is_working=True)]
    connections = full_of(*seats)
    assert connections.make_place("d", 10) == MIN_UNUSED_S / 2  # until the first of them gives way
    assert closed(seats) == []


def test_the_client_that_holds_most_gives_way() -> None:
    """A client with few connections keeps an idle one, though another client's have been idle for less long."""
    seats = [Seat("a", 0), Seat("b", 1, 1), Seat("b", 2, 1)]
    connections = full_of(*seats)
    assert connections.make_place("c", 100) == 0
    assert closed(seats) == [1]


def test_a_client_over_its_share_takes_a_place_of_its_own() -> None:
    """Its newcomer gets the place of its own idle connection, never that of another client's."""
    seats = [Seat("a", 5), Seat("a", 4), Seat("b", 0), Seat("c", 0)]
    connections = full_of(*seats)
    assert connections.make_place("a", 10) == 0
    assert closed(seats) == [1]


async def test_room_is_waited_for() -> None:
    """While as many are being refused as may be, no further connection is accepted."""
    connections = full_of(Seat("a"))
    await asyncio.wait_for(connections.wait_for_room(), 1)
    connections.add_refused("refusal")
    waiting = asyncio.create_task(connections.wait_for_room())
    await asyncio.sleep(0)
    assert not waiting.done()
    connections.remove("refusal")
    await asyncio.wait_for(waiting, 1)


@pytest.mark.parametrize(
    ("address", "client"),
    [
        (("127.0.0.1", 1), "127.0.0.1"),
        (("::1", 1, 0, 0), "::"),
        (("2001:db8:1:2:3:4:5:6", 1, 0, 0), "2001:db8:1:2::"),
        (("fe80::1%eth0", 1, 0, 2), "fe80::"),
        (("::ffff:10.0.0.1", 1, 0, 0), "10.0.0.1"),
        ("", ""),
        (b"", ""),
    ],
)
def test_clients(address: object, client: str) -> None:
    """A client is an IPv4 address, or the half of an IPv6 address that names its network."""
    assert client_of(address) == client
