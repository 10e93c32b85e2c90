"""The engine as a child process: started, watched, and started again when it dies."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from runtime import messages
from runtime.config import EngineSettings
from runtime.engines.child import ENGINE_COMMAND, EngineChild, EngineCrash
from runtime.engines.protocol import GenerationEvent
from runtime.errors import EngineDied, EngineUnavailable, GemlaneError, ModelLoadError, Overloaded
from runtime.generation import GenerationRequest
from runtime.messages import Ready, Stats

log = logging.getLogger(__name__)

_READY_TIMEOUT_S = 30.0
"""How long a request waits for an engine that is starting (again) before it is refused."""
_HANG_TIMEOUT_S = 300.0
"""A working engine sends an event at least once a step; a step of minutes is a hang."""


class ChildEngine:
    """Implements `runtime.engines.protocol.Engine` with a child process.

    Not thread-safe; one event loop owns it.
    """

    def __init__(
        self,
        settings: EngineSettings,
        *,
        max_in_flight: int,
        command: Sequence[str] = ENGINE_COMMAND,
        ready_timeout_s: float = _READY_TIMEOUT_S,
        hang_timeout_s: float = _HANG_TIMEOUT_S,
        on_loading: Callable[[float], None] = lambda _fraction: None,
    ) -> None:
        self._settings = settings
        self._max_in_flight = max_in_flight
        self._command = command
        self._ready_timeout_s = ready_timeout_s
        self._hang_timeout_s = hang_timeout_s
        self._on_loading = on_loading
        self._on_ready: list[Callable[[], None]] = []
        self._child: EngineChild | None = None
        self._is_ready = asyncio.Event()
        self._n_waiting = self._n_restarts = 0
        self._stats: Stats | None = None
        self._supervisor: asyncio.Task[None] | None = None

    @property
    def ready(self) -> Ready | None:
        """What is loaded, or None while the engine starts (or starts again)."""
        return self._child.ready if self._child else None

    @property
    def stats(self) -> Stats | None:
        """The engine's last report of its load."""
        return self._stats

    @property
    def n_in_flight(self) -> int:
        """Requests submitted and not yet ended, including those that wait for the engine to start."""
        return self._n_waiting + (self._child.n_requests if self._child else 0)

    @property
    def n_restarts(self) -> int:
        """Times that the engine process had to be started again."""
        return self._n_restarts

    @property
    def process_id(self) -> int | None:
        """The process that runs now."""
        return self._child.process_id if self._child else None

    async def start(self) -> Ready:
        """Start the engine and wait until the model is loaded.

        Raises:
            ModelLoadError: the model cannot be loaded; the message is for the user.
        """
        first: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self._supervisor = asyncio.create_task(self._supervise(first), name="engine supervisor")
        return await asyncio.shield(first)

    async def stop(self) -> None:
        """End the engine; running requests fail with ``EngineUnavailable``. Safe to call twice."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            with suppress(asyncio.CancelledError):
                await self._supervisor
            self._supervisor = None

    @asynccontextmanager
    async def generate(self, request: GenerationRequest) -> AsyncIterator[AsyncGenerator[GenerationEvent, None]]:
        """See `Engine.generate`."""
        if self.n_in_flight >= self._max_in_flight:
            raise Overloaded(f"{self.n_in_flight} requests are running or waiting already; try again in a moment")
        child = await self._ready_child()
        events = child.submit(request)
        try:
            yield events
        finally:
            await events.aclose()
            child.cancel(request.request_id)

    async def _ready_child(self) -> EngineChild:
        """The child, once it is ready."""
        self._n_waiting += 1
        try:
            async with asyncio.timeout(self._ready_timeout_s if self._supervisor else 0):
                while self._child is None or self._child.ready is None:
                    await self._is_ready.wait()
                return self._child
        except TimeoutError:
            raise EngineUnavailable("the model is being loaded; try again in a moment") from None
        finally:
            self._n_waiting -= 1

    def on_ready(self, callback: Callable[[], None]) -> None:
        """See `Engine.on_ready`."""
        self._on_ready.append(callback)

    def add_adapter(self, digest: str, path: Path) -> Awaitable[None]:
        """See `Engine.add_adapter`."""
        if self._child is None or self._child.ready is None:
            return _fail(EngineUnavailable("the model is being loaded"))
        return asyncio.shield(self._child.add_adapter(digest, str(path)))

    def remove_adapter(self, digest: str) -> Awaitable[None]:
        """See `Engine.remove_adapter`."""
        if self._child is None or self._child.ready is None:
            return _succeed()
        return asyncio.shield(self._child.remove_adapter(digest))

    async def _supervise(self, first: asyncio.Future[Ready]) -> None:
        """Run one child after the other until cancelled; wait longer after each that dies before it is ready."""
        delay_s = 0.0
        while True:
            reason, was_ready = await self._run_next(first)
            if isinstance(reason, EngineCrash) and not was_ready and self._settings.adapter_batching == "auto":
                # llama.cpp may have aborted while the lanes were proven: without lanes it does what it always does.
                log.warning("%s before it was ready; starting it with grouped batches", reason)
                self._settings = dataclasses.replace(self._settings, adapter_batching="grouped")
                continue
            if not first.done():
                first.set_exception(reason)
                return
            log.error("%s; starting it again", reason)
            self._n_restarts += 1
            delay_s = 0.0 if was_ready else min(30.0, max(1.0, delay_s * 2))
            await asyncio.sleep(delay_s)

    async def _run_next(self, first: asyncio.Future[Ready]) -> tuple[ModelLoadError, bool]:
        """Run one child to its end; the reason of its end, and whether it had been ready."""
        try:
            child = self._child = await EngineChild.spawn(self._command, self._settings)
        except OSError as error:
            return ModelLoadError(f"the engine process cannot be started: {error.strerror}"), False
        end: GemlaneError = EngineUnavailable("the server is shutting down")
        try:
            await child.run(self._hang_timeout_s, lambda event: self._notice(event, first))
            end = EngineDied("the engine process ended while this request was running; it is being restarted")
        finally:
            self._child = None
            self._is_ready.clear()
            await child.end(end)
        return child.end_reason, child.ready is not None

    def _notice(self, event: messages.Message, first: asyncio.Future[Ready]) -> None:
        """Take an event that belongs to no request."""
        match event:
            case Ready():
                for callback in self._on_ready:
                    callback()
                self._is_ready.set()
                if not first.done():
                    first.set_result(event)
            case messages.Loading():
                self._on_loading(event.fraction)
            case Stats():
                self._stats = event


async def _fail(error: GemlaneError) -> None:
    raise error


async def _succeed() -> None:
    pass
