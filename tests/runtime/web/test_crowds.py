"""Crowds: idle connections, bursts and half-closed clients, each over sockets of its own.

``scripts/crowd.py`` does the same with thousands of connections and a real engine.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections import Counter

import pytest
from aiohttp import ClientSession

from runtime.web.connections import MIN_UNUSED_S
from runtime.web.limits import HttpLimits
from tests.runtime.conftest import Serve
from tests.runtime.double import ScriptedEngine

N_IDLE, N_BURST, N_PLACES = 120, 100, 48
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"
RUN = "/client/v4/accounts/a/ai/run/@cf/google/gemma-7b-it-lora"


def run_request(*, version: str = "1.1", is_stream: bool = False, length: int | None = None) -> bytes:
    """A run; ``length`` may promise more than there is."""
    body = b'{"prompt":"hi","stream":true}' if is_stream else b'{"prompt":"hi"}'
    head = f"POST {RUN} HTTP/{version}\r\nHost: localhost\r\nContent-Length: {length or len(body)}\r\n\r\n"
    return head.encode() + body


def address_of(client: ClientSession) -> tuple[str, int]:
    """Where its server listens."""
    base = client._base_url
    assert base is not None
    assert base.host is not None
    assert base.port is not None
    return base.host, base.port


async def read_answer(reader: asyncio.StreamReader) -> int:
    """The status of the next answer, which is read whole."""
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
    length = re.search(rb"Content-Length: (\d+)", head)
    assert length is not None, head
    await reader.readexactly(int(length[1]))
    return int(head.split()[1])


async def status_of(address: tuple[str, int], request: bytes) -> int:
    """The status of the answer on a connection of its own; a reset raises."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(request)
        return await read_answer(reader)
    finally:
        writer.close()


async def test_a_crowd_leaves_room_for_a_client_that_is_there(serve: Serve) -> None:
    """While idle connections and a burst come, a kept connection is answered; the burst gets answers, no reset."""
    address = address_of(await serve(limits=HttpLimits(n_connections=N_PLACES)))
    reader, writer = await asyncio.open_connection(*address)
    waits: list[float] = []
    is_over = asyncio.Event()

    async def keep_asking() -> None:
        loop = asyncio.get_running_loop()
        while not is_over.is_set():
            began_at = loop.time()
            writer.write(HEALTH)
            assert await read_answer(reader) == 200
            waits.append(loop.time() - began_at)
            await asyncio.sleep(0.02)

    asking = asyncio.create_task(keep_asking())
    idle = []
    for _ in range(N_IDLE):
        peer = socket.socket()
        peer.setblocking(False)
        await asyncio.get_running_loop().sock_connect(peer, address)
        idle.append(peer)
    n_before = len(waits)
    statuses = Counter(await asyncio.gather(*(status_of(address, HEALTH) for _ in range(N_BURST))))
    n_during = len(waits) - n_before
    is_over.set()
    await asking
    for peer in idle:
        peer.close()
    writer.close()
    assert statuses.total() == N_BURST
    assert set(statuses) <= {200, 429}
    assert n_before > 0
    assert n_during > 0


async def test_idle_connections_give_way(serve: Serve) -> None:
    """A client whose places are all taken by idle connections gets one of theirs once they have idled a second."""
    address = address_of(await serve(limits=HttpLimits(n_connections=8)))
    idle = [await asyncio.open_connection(*address) for _ in range(4)]
    assert await status_of(address, HEALTH) == 429
    await asyncio.sleep(MIN_UNUSED_S)  # as Retry-After says
    assert await status_of(address, HEALTH) == 200
    assert await asyncio.wait_for(idle[0][0].read(), 5) == b""
    for _, writer in idle:
        writer.close()


async def test_a_request_on_the_way_to_a_lost_place_is_answered(serve: Serve) -> None:
    """A connection that has just given way answers a request with 429 instead of a reset."""
    address = address_of(await serve(limits=HttpLimits(n_connections=2)))
    reader, writer = await asyncio.open_connection(*address)
    await asyncio.sleep(MIN_UNUSED_S)
    assert await status_of(address, HEALTH) == 200
    writer.write(HEALTH)
    assert await read_answer(reader) == 429
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


async def half_close(address: tuple[str, int], request: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A client that has sent all it will send."""
    reader, writer = await asyncio.open_connection(*address)
    writer.write(request)
    writer.write_eof()
    return reader, writer


@pytest.mark.parametrize("n_interim", [0, 3])
async def test_a_half_closed_client_gets_its_answer(
    client: ClientSession, engine: ScriptedEngine, n_interim: int
) -> None:
    """A client that closed its sending side gets the whole answer; then the connection is closed."""
    ready = asyncio.Event()
    engine.script = [ready, "Hello", " world"]
    reader, writer = await half_close(address_of(client), run_request())
    await asyncio.wait_for(engine.waiting.wait(), 5)
    for _ in range(n_interim):
        assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5) == INTERIM
    ready.set()
    answer = (await asyncio.wait_for(reader.read(), 5)).replace(INTERIM, b"")
    writer.close()
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert b'"response":"Hello world"' in answer
    assert engine.cancelled == []


@pytest.mark.parametrize("request_bytes", [HEALTH, run_request(), run_request(is_stream=True)])
async def test_a_half_closed_client_gets_a_quick_answer(client: ClientSession, request_bytes: bytes) -> None:
    """An answer that is there at once, streamed or not, comes whole and closes the connection."""
    reader, writer = await half_close(address_of(client), request_bytes)
    received = (await asyncio.wait_for(reader.read(), 5)).replace(INTERIM, b"")
    writer.close()
    assert received.startswith(b"HTTP/1.1 200 OK")
    assert received.endswith((b"}", b"data: [DONE]\n\n\r\n0\r\n\r\n"))


async def test_each_request_before_a_half_close_is_answered(client: ClientSession, engine: ScriptedEngine) -> None:
    """Requests that were sent one behind the other are all answered, in order; then the connection is closed."""
    ready = asyncio.Event()
    engine.script = [ready, "Hello"]
    reader, writer = await half_close(address_of(client), HEALTH + run_request() + HEALTH)
    await asyncio.wait_for(engine.waiting.wait(), 5)
    ready.set()
    received = (await asyncio.wait_for(reader.read(), 5)).replace(INTERIM, b"")
    writer.close()
    assert received.count(b"HTTP/1.1 200 OK") == 3
    assert re.findall(rb"\"status\"|\"response\"", received) == [b'"status"', b'"response"', b'"status"']


@pytest.mark.parametrize(
    "request_bytes",
    [b"", b"GET /health HTTP/1.1\r\nHost: local", run_request(length=1000)],
    ids=["nothing", "half of the headers", "half of the body"],
)
async def test_half_a_request_gets_none(client: ClientSession, engine: ScriptedEngine, request_bytes: bytes) -> None:
    """A client that half-closes before its request is whole is let go at once."""
    reader, writer = await half_close(address_of(client), request_bytes)
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()
    assert engine.requests == []


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_a_client_that_closes_cancels(client: ClientSession, engine: ScriptedEngine, version: str) -> None:
    """A closed client looks as a half-closed one, and its request is cancelled all the same."""
    engine.script = [asyncio.Event()]
    _, writer = await asyncio.open_connection(*address_of(client))
    writer.write(run_request(version=version))
    await asyncio.wait_for(engine.waiting.wait(), 5)
    writer.close()
    await asyncio.wait_for(engine.left.wait(), 2)
    assert engine.cancelled == [engine.requests[0].request_id]
