"""An answer taken from the engine: whole, or as a stream of server-sent events.

Both ways end the generation when their caller is cancelled, which is how a client that goes away frees its sequence.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from aiohttp import web

from runtime.engines.protocol import Restarted
from runtime.errors import EngineError, RequestTimeout
from runtime.generation import FinishReason, GenerationRequest, Usage
from runtime.messages import Finished, Started, Text
from runtime.web.keys import ENGINE, FRAMES, LIMITS, STREAM
from runtime.web.streams import Frames


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    text: str
    finish_reason: FinishReason
    usage: Usage


async def collect(request: web.Request, generation: GenerationRequest) -> Answer:
    """Wait for the whole answer.

    Raises:
        RequestTimeout: it took longer than the limit.
        GemlaneError: as the engine fails.
    """
    pieces: list[str] = []
    async with _deadline(request), request.app[ENGINE].generate(generation, can_restart=True) as events:
        async for event in events:
            if isinstance(event, Restarted):
                pieces.clear()
            elif isinstance(event, Text):
                pieces.append(event.text)
            elif isinstance(event, Finished):
                return Answer("".join(pieces), event.finish_reason, event.usage)
    raise EngineError("the engine ended the answer without a word")


async def stream(request: web.Request, generation: GenerationRequest, frames: Frames) -> web.StreamResponse:
    """Send the answer piece by piece; nothing is sent before the first piece is there.

    Raises:
        RequestTimeout: it took longer than the limit.
        ConnectionResetError: the client is gone, or read so slowly that it was cut.
        GemlaneError: as the engine fails. Once bytes are sent, ``request`` holds the stream and its frames.
    """
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    async with _deadline(request), request.app[ENGINE].generate(generation) as events:
        async for event in events:
            if isinstance(event, Started | Restarted):
                continue
            if not response.prepared:
                await response.prepare(request)
                request[STREAM], request[FRAMES] = response, frames
            if isinstance(event, Finished):
                await _write(request, response, frames.end(event.finish_reason, event.usage))
                return response
            await _write(request, response, frames.text(event.text))
    raise EngineError("the engine ended the answer without a word")


async def break_off(request: web.Request, error: Exception) -> web.StreamResponse:
    """End a stream that cannot be finished: its dialect's last word, then the connection, without a proper end."""
    response, transport = request[STREAM], request.transport
    if transport is not None and not transport.is_closing():
        with contextlib.suppress(ConnectionError):
            await _write(request, response, request[FRAMES].error(error))
        transport.close()
        asyncio.get_running_loop().call_later(request.app[LIMITS].write_s, transport.abort)
    return response


@contextlib.asynccontextmanager
async def _deadline(request: web.Request) -> AsyncIterator[None]:
    limit_s = request.app[LIMITS].request_s
    try:
        async with asyncio.timeout(limit_s):
            yield
    except TimeoutError:
        raise RequestTimeout(f"the answer was not done within {limit_s:g} s") from None


async def _write(request: web.Request, response: web.StreamResponse, data: bytes) -> None:
    """Send ``data``; a client whose buffer stays full is cut, so that no answer waits in memory for ever."""
    try:
        async with asyncio.timeout(request.app[LIMITS].write_s):
            await response.write(data)
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("the client reads too slowly") from None
