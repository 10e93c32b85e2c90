"""An engine whose answers are observed: it times them and passes everything through."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from runtime.engines.protocol import Engine, GenerationEvent, Replica, Restarted
from runtime.engines.states import EngineStatus
from runtime.errors import GemlaneError
from runtime.generation import GenerationRequest, Usage
from runtime.messages import Finished, Ready, Started, Stats, Text
from runtime.observe.events import AnswerEnded, AnswerStarted, Observer, TokensCame


class ObservedEngine:
    """Implements `runtime.engines.protocol.Engine` with another one."""

    def __init__(self, engine: Engine, observer: Observer) -> None:
        self._engine = engine
        self._observer = observer

    @property
    def ready(self) -> Ready | None:
        """See `Engine.ready`."""
        return self._engine.ready

    @property
    def stats(self) -> Stats | None:
        """See `Engine.stats`."""
        return self._engine.stats

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """See `Engine.replicas`."""
        return self._engine.replicas

    @property
    def n_in_flight(self) -> int:
        """See `Engine.n_in_flight`."""
        return self._engine.n_in_flight

    @property
    def n_restarts(self) -> int:
        """See `Engine.n_restarts`."""
        return self._engine.n_restarts

    @property
    def status(self) -> EngineStatus:
        """See `Engine.status`."""
        return self._engine.status

    @asynccontextmanager
    async def generate(
        self, request: GenerationRequest, *, can_restart: bool = False
    ) -> AsyncIterator[AsyncGenerator[GenerationEvent, None]]:
        """See `Engine.generate`."""
        record = _Record(request, self._observer)
        try:
            async with self._engine.generate(request, can_restart=can_restart) as events:
                yield record.follow(events)
        except GemlaneError as error:
            record.outcome = error.code
            raise
        finally:
            record.end()

    def on_ready(self, callback: Callable[[], None]) -> None:
        """See `Engine.on_ready`."""
        self._engine.on_ready(callback)

    def add_adapter(self, digest: str, path: Path) -> Awaitable[None]:
        """See `Engine.add_adapter`."""
        return self._engine.add_adapter(digest, path)

    def pin_adapter(self, digest: str, *, is_pinned: bool) -> None:
        """See `Engine.pin_adapter`."""
        self._engine.pin_adapter(digest, is_pinned=is_pinned)

    def remove_adapter(self, digest: str) -> Awaitable[None]:
        """See `Engine.remove_adapter`."""
        return self._engine.remove_adapter(digest)


class _Record:
    """One answer's times and counts so far."""

    def __init__(self, request: GenerationRequest, observer: Observer) -> None:
        self._request = request
        self._observer = observer
        self._began_at = self._last_at = time.perf_counter()
        self._first_token_s: float | None = None
        self._usage = Usage(0, 0)
        self.outcome = "cancelled"

    async def follow(self, events: AsyncGenerator[GenerationEvent, None]) -> AsyncGenerator[GenerationEvent, None]:
        """Pass the events on, and note them."""
        async for event in events:
            self._note(event)
            yield event

    def _note(self, event: GenerationEvent) -> None:
        request_id, blend = self._request.request_id, self._request.blend
        match event:
            case Started():
                self._usage = Usage(event.n_prompt_tokens, 0, event.n_cached_tokens)
                self._observer.observe(
                    AnswerStarted(
                        request_id,
                        blend,
                        event.n_prompt_tokens,
                        event.n_cached_tokens,
                        event.queue_s,
                        event.lane_wait_s,
                    )
                )
            case Restarted():
                self._usage, self._first_token_s = Usage(0, 0), None
            case Text():
                now = time.perf_counter()
                is_first, gap_s = self._first_token_s is None, now - self._last_at
                if is_first:
                    self._first_token_s = now - self._began_at
                self._last_at = now
                n_made = self._usage.n_completion_tokens + event.n_tokens
                self._usage = Usage(self._usage.n_prompt_tokens, n_made, self._usage.n_cached_tokens)
                self._observer.observe(TokensCame(request_id, blend, event.n_tokens, gap_s, is_first))
            case Finished():
                self._usage, self.outcome = event.usage, str(event.finish_reason)

    def end(self) -> None:
        """Report the answer's end."""
        self._observer.observe(
            AnswerEnded(
                self._request.request_id,
                self._request.blend,
                self.outcome,
                self._usage,
                self._first_token_s,
                time.perf_counter() - self._began_at,
            )
        )
