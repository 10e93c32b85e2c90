"""Clients that take too much: too many, too slow, too large. Each over a bare socket."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from aiohttp import ClientSession

from runtime.web.limits import HttpLimits
from tests.runtime.conftest import Serve
from tests.runtime.double import ScriptedEngine

RUN = "/client/v4/accounts/a/ai/run/@cf/google/gemma-7b-it-lora"


@asynccontextmanager
async def connection(
    client: ClientSession, **options: int
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection of its own to the server of ``client``."""
    base = client._base_url
    assert base is not None
    peer = socket.socket()
    peer.setblocking(False)
    if "receive_buffer" in options:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, options["receive_buffer"])
    await asyncio.get_running_loop().sock_connect(peer, (base.host, base.port))
    reader, writer = await asyncio.open_connection(sock=peer, limit=1024)
    try:
        yield reader, writer
    finally:
        writer.close()


def post(body: bytes, length: int | None = None) -> bytes:
    """A run request, which may promise more than it brings."""
    return f"POST {RUN} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length or len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize("start", [b"", b"POST / HTTP/1.1\r\nHost: localhost\r\nX-Slow: "])
async def test_a_client_that_never_finishes_its_headers(serve: Serve, start: bytes) -> None:
    """A client whose headers do not end is cut off; one whose headers came in time is not."""
    client = await serve(limits=HttpLimits(header_s=0.2))
    async with connection(client) as (good, ask), connection(client) as (slow, stall):
        ask.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await good.readline()).startswith(b"HTTP/1.1 200")
        stall.write(start)
        assert await asyncio.wait_for(slow.read(), 5) == b""
        ask.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"HTTP/1.1 200" in await asyncio.wait_for(good.readuntil(b"HTTP/1.1 200"), 5)


async def test_a_client_that_never_finishes_its_body(serve: Serve, engine: ScriptedEngine) -> None:
    """A client whose body does not end gets a 408."""
    client = await serve(limits=HttpLimits(body_s=0.1))
    async with connection(client) as (reader, writer):
        writer.write(post(b'{"prompt":', length=100))
        assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 408")
    assert engine.requests == []


async def test_too_many_connections(serve: Serve) -> None:
    """A client gets half of all places, and 429 for one more; when a connection leaves, another may come."""
    client = await serve(limits=HttpLimits(n_connections=4))
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(connection(client))
        for reader, writer in (first, await stack.enter_async_context(connection(client))):
            writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        async with connection(client) as (reader, writer):
            writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            refusal = await reader.read()
            assert refusal.startswith(b"HTTP/1.1 429")
            assert b"\r\nRetry-After: 5\r\n" in refusal  # when the first of them will have been idle for long enough
            assert b'"code":"overloaded"' in refusal
        first[1].write(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        await first[0].read()
        async with connection(client) as (reader, writer):
            writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * 10_000 + b"\r\n\r\n",
        b"GET /" + b"x" * 10_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"X-Many: x\r\n" * 200 + b"\r\n",
        b"nonsense\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=["long header", "long path", "many headers", "no HTTP", "bad chunk"],
)
async def test_what_is_no_proper_request(
    client: ClientSession, request_bytes: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Bytes that are not HTTP get a 400, the log is not filled with them, and the server goes on."""
    async with connection(client) as (reader, writer):
        writer.write(request_bytes)
        assert re.match(rb"HTTP/1\.[01] 400", await asyncio.wait_for(reader.readline(), 5))
    assert "Traceback" not in caplog.text
    async with client.get("/health") as response:
        assert response.status == 200


async def test_a_slow_reader_is_cut(serve: Serve, engine: ScriptedEngine) -> None:
    """A client that leaves its buffers full does not keep an answer in memory for ever; its sequence is freed."""
    engine.script = ["x" * 100_000] * 200
    client = await serve(limits=HttpLimits(write_s=0.2))
    async with connection(client, receive_buffer=4096) as (_, writer):
        writer.write(post(json.dumps({"prompt": "hi", "stream": True}).encode()))
        await asyncio.wait_for(engine.left.wait(), 10)
    assert engine.cancelled == [engine.requests[0].request_id]


async def test_http_1_0(client: ClientSession) -> None:
    """A stream to a client of HTTP/1.0 is not chunked, and ends with its connection."""
    async with connection(client) as (reader, writer):
        writer.write(post(b'{"prompt":"hi","stream":true}').replace(b"HTTP/1.1", b"HTTP/1.0", 1))
        head, _, body = (await asyncio.wait_for(reader.read(), 5)).partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert body.startswith(b"data: ")
    assert body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("request_bytes", "words"),
    [
        (b"GET /v1/models HTTP/1.1\r\n\r\n", "Missing 'Host' header"),
        (
            b"POST /v1/models HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: br\r\nContent-Length: 1\r\n\r\nx",
            "may be gzip or deflate",
        ),
        (b"NONSENSE\r\n\r\n", "Invalid method"),
    ],
)
async def test_bytes_that_are_not_http_are_refused_as_json(serve: Serve, request_bytes: bytes, words: str) -> None:
    """The refusal is JSON of ours, names no software but this one, and says what was wrong."""
    client = await serve()
    assert client._base_url is not None
    reader, writer = await asyncio.open_connection(client._base_url.host, client._base_url.port)
    writer.write(request_bytes)
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    assert b"400 Bad Request" in head
    assert b"application/json" in head
    assert b"aiohttp" not in head
    error = json.loads(body)["error"]
    assert error["code"] == "invalid_request"
    assert words in error["message"]


async def test_an_expectation_that_is_not_met(client: ClientSession) -> None:
    """An Expect header other than 100-continue is refused 417, as JSON of ours."""
    async with client.get("/health", headers={"Expect": "miracles"}) as response:
        assert response.status == 417
        assert (await response.json())["error"]["message"] == (
            "the only expectation that the server meets is 100-continue"
        )


@pytest.mark.parametrize(("encoding", "status"), [("x-none", 400), ("gzip, gzip", 400), ("identity", 200)])
async def test_an_encoding_that_is_not_known(client: ClientSession, encoding: str, status: int) -> None:
    """A body in an encoding that the server cannot undo is refused by name, and never read as it is."""
    headers = {"Content-Encoding": encoding, "Content-Type": "application/json"}
    body = b'{"model":"gemma-7b-it-lora","prompt":"hi"}'
    async with client.post("/v1/completions", data=body, headers=headers) as response:
        assert response.status == status
        assert ("gzip or deflate" in await response.text()) == (status == 400)


async def test_a_broken_gzip_body_leaves_no_traceback(client: ClientSession, caplog: pytest.LogCaptureFixture) -> None:
    """The client gets one line about a broken gzip body, and the log has no error."""
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    async with client.post("/v1/chat/completions", data=b"0123456789", headers=headers) as response:
        assert response.status == 400
        message = (await response.json())["error"]["message"]
    assert "Content-Encoding" in message
    assert "\n" not in message
    assert [record for record in caplog.records if record.exc_info] == []


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/chat/completions", "/v1/chat/completions was meant"),
        ("/v1/v1/models", "/v1/models was meant"),
        ("/nowhere", "GET /openapi.json"),
        ("/v1/embeddings", "GET /openapi.json"),
    ],
)
async def test_an_unknown_path_says_which_was_meant(client: ClientSession, path: str, words: str) -> None:
    """A base URL without ``/v1``, or with two, is named."""
    async with client.get(path) as response:
        assert response.status == 404
        assert words in (await response.json())["error"]["message"]
