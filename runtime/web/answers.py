"""Answers taken from the engine: whole, or as a stream of server-sent events.

One request may ask for several answers: ``n`` choices, or a list of prompts. They run side by side, never more of
them than the engine decodes at once, so that a request of 128 takes no more of the queue than one of 8. Both ways end
what still runs when their caller is cancelled, which is how a client that goes away frees its sequences.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass

from aiohttp import web

from runtime.engines.protocol import Engine, Restarted
from runtime.errors import ContextExceeded, EngineError, RequestTimeout
from runtime.generation import GenerationRequest, Usage
from runtime.messages import Accepted, Finished, PromptScores, Started, Text, TokenScore
from runtime.web.keys import ENGINE, FRAMES, LIMITS, STREAM
from runtime.web.streams import Answer, Frames, TextEnd, TextPiece, total_usage

_MIN_MESSAGE_TOKENS = 4
"""Two control tokens, the role and a line break: what Gemma's template puts around a message at least."""
_MAX_TOKEN_CHARACTERS = 128
"""No token of Gemma's vocabulary stands for more: its longest has 48 bytes."""
_DEFAULT_AT_ONCE = 8
"""Answers of one request that run at once while the engine has not yet said how many it decodes."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One answer to make; ``has_echo`` puts the prompt, and its logprobs, before it."""

    generation: GenerationRequest
    has_echo: bool = False


@dataclass(frozen=True, slots=True)
class _Open:
    """An answer was accepted: what is wrong with the request is known by now."""


@dataclass(frozen=True, slots=True)
class _Again:
    """The engine ended and an answer begins again: what came of it before is void."""

    index: int


_Event = _Open | _Again | TextPiece | TextEnd


def refuse_oversized(request: web.Request, texts: Sequence[str], n_tokens: int = 0) -> None:
    """Refuse a conversation that cannot fit into the context window, before it is put into the template.

    Args:
        request: the client's.
        texts: those of the messages, or of the one prompt.
        n_tokens: token ids besides.

    Raises:
        ContextExceeded: the number of messages, characters or ids alone says that it cannot fit.
    """
    ready = request.app[ENGINE].ready
    if ready is None:
        return
    n_least = n_tokens + sum(len(text) // _MAX_TOKEN_CHARACTERS for text in texts)
    n_least += _MIN_MESSAGE_TOKENS * (len(texts) - 1)
    if n_least >= ready.model.n_ctx:
        raise ContextExceeded(
            f"the prompt has at least {n_least} tokens; at most {ready.model.n_ctx - 1} leave room for an answer "
            f"in the context window of {ready.model.n_ctx}"
        )


async def collect(request: web.Request, generation: GenerationRequest) -> Answer:
    """Wait for one whole answer.

    Raises:
        RequestTimeout: it took longer than the limit.
        GemlaneError: as the engine fails.
    """
    (answer,) = await collect_all(request, [Ask(generation)])
    return answer


async def collect_all(request: web.Request, asks: Sequence[Ask]) -> list[Answer]:
    """Wait for all answers, in the order of ``asks``.

    Raises:
        RequestTimeout: they took longer than the limit.
        GemlaneError: as the engine fails for any of them.
    """
    pieces: list[list[TextPiece]] = [[] for _ in asks]
    ends: dict[int, TextEnd] = {}
    async with _deadline(request), contextlib.aclosing(_run(request.app[ENGINE], asks, can_restart=True)) as events:
        async for event in events:
            if isinstance(event, _Again):
                pieces[event.index].clear()
            elif isinstance(event, TextPiece):
                pieces[event.index].append(event)
            elif isinstance(event, TextEnd):
                ends[event.index] = event
    return [_answer(pieces[index], ends[index]) for index in range(len(asks))]


async def stream(
    request: web.Request, asks: Sequence[Ask], frames: Frames, *, n_for_each_prompt: int = 1
) -> web.StreamResponse:
    """Send the answers piece by piece. The headers go out once a request is accepted, before its first token.

    Args:
        request: the client's.
        asks: the answers to make.
        frames: how they are written.
        n_for_each_prompt: how many successive ones of ``asks`` have the same prompt, which is counted once.

    Raises:
        RequestTimeout: it took longer than the limit.
        ConnectionResetError: the client is gone, or took the bytes so slowly that it was cut.
        GemlaneError: as the engine fails. Once bytes are sent, ``request`` holds the stream and its frames.
    """
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    usages: dict[int, Usage] = {}
    async with _deadline(request), contextlib.aclosing(_run(request.app[ENGINE], asks)) as events:
        async for event in events:
            if not response.prepared:
                await response.prepare(request)
                request[STREAM], request[FRAMES] = response, frames
                await _write(request, response, frames.start())
            if isinstance(event, TextPiece):
                await _write(request, response, frames.text(event))
            elif isinstance(event, TextEnd):
                usages[event.index] = event.usage
                await _write(request, response, frames.end(event))
    await _write(request, response, frames.close(total_usage([usages[i] for i in range(len(asks))], n_for_each_prompt)))
    return response


async def break_off(request: web.Request, error: Exception) -> web.StreamResponse:
    """End a stream that cannot be finished: its dialect's error frame, then the proper end of the body.

    A browser drops what came just before a broken end.
    """
    response, transport = request[STREAM], request.transport
    if transport is not None and not transport.is_closing():
        with contextlib.suppress(ConnectionError):
            await _write(request, response, request[FRAMES].error(error))
            await response.write_eof()
    return response


async def _run(engine: Engine, asks: Sequence[Ask], *, can_restart: bool = False) -> AsyncGenerator[_Event, None]:
    """The events of all answers, as they come."""
    if len(asks) == 1:
        async with contextlib.aclosing(_run_one(engine, 0, asks[0], can_restart=can_restart)) as events:
            async for event in events:
                yield event
        return
    queue: asyncio.Queue[_Event | Exception | None] = asyncio.Queue()
    places = asyncio.Semaphore(engine.ready.model.n_parallel if engine.ready else _DEFAULT_AT_ONCE)

    async def follow(index: int, ask: Ask) -> None:
        try:
            run = _run_one(engine, index, ask, can_restart=can_restart)
            async with places, contextlib.aclosing(run) as events:
                async for event in events:
                    queue.put_nowait(event)
            queue.put_nowait(None)
        except Exception as error:  # noqa: BLE001 - raised again below, where the caller waits
            queue.put_nowait(error)

    tasks = [asyncio.create_task(follow(index, ask)) for index, ask in enumerate(asks)]
    try:
        n_left = len(tasks)
        while n_left:
            taken = await queue.get()
            if isinstance(taken, Exception):
                raise taken
            if taken is None:
                n_left -= 1
            else:
                yield taken
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _run_one(engine: Engine, index: int, ask: Ask, *, can_restart: bool) -> AsyncGenerator[_Event, None]:
    """The events of one answer."""
    prompt_scores: list[TokenScore] = []
    owes_echo = ask.has_echo
    async with engine.generate(ask.generation, can_restart=can_restart) as events:
        async for event in events:
            match event:
                case Accepted():
                    yield _Open()
                case Restarted():
                    prompt_scores.clear()
                    owes_echo = ask.has_echo
                    yield _Again(index)
                case PromptScores():
                    prompt_scores += event.scores
                case Started() if owes_echo:
                    owes_echo = False
                    yield TextPiece(index, _echo(ask.generation, prompt_scores), tuple(prompt_scores))
                case Text():
                    yield TextPiece(index, event.text, event.scores)
                case Finished():
                    yield TextEnd(index, event.finish_reason, event.usage, event.end_score)
                    return
    raise EngineError("the engine ended the answer without a word")


def _echo(generation: GenerationRequest, scores: Sequence[TokenScore]) -> str:
    """The prompt as text; that of token ids is known by their scores."""
    return generation.prompt.text or b"".join(score.piece for score in scores).decode(errors="replace")


def _answer(pieces: Sequence[TextPiece], end: TextEnd) -> Answer:
    scores = tuple(score for piece in pieces for score in piece.scores)
    return Answer("".join(piece.text for piece in pieces), end.reason, end.usage, scores, end.end_score)


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
    if not data:
        return
    try:
        async with asyncio.timeout(request.app[LIMITS].write_s):
            await response.write(data)
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("the client reads too slowly") from None
