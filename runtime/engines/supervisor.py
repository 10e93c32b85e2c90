"""The engine as a child process: started, watched, and started again when it ends."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from runtime import messages
from runtime.config import EngineSettings
from runtime.engines.child import ENGINE_COMMAND, MIN_QUIET_S, EngineChild, EngineCrash
from runtime.engines.drain import DrainRate
from runtime.engines.ledger import Ledger, Ticket
from runtime.engines.protocol import GenerationEvent, Replica
from runtime.engines.states import Ending, EngineState, EngineStatus, Supervision
from runtime.errors import (
    EngineDied,
    EngineError,
    EngineUnavailable,
    GemlaneError,
    ModelLoadError,
    without_folders,
)
from runtime.generation import GenerationRequest
from runtime.messages import Ready, Stats

log = logging.getLogger(__name__)

_READY_TIMEOUT_S = 30.0
"""How long a request waits at least for an engine that is starting (again) before it is refused."""
_IDLE_CHECK_S = 5.0
"""How often an engine without lanes is looked at for an idle moment."""
_LOADING = "the model is being loaded; try again in a moment"


class ChildEngine:
    """Implements `runtime.engines.protocol.Engine` with a child process.

    Not thread-safe; one event loop owns it.
    """

    def __init__(
        self,
        settings: EngineSettings,
        *,
        max_in_flight: int,
        state_dir: str = "",
        command: Sequence[str] = ENGINE_COMMAND,
        ready_timeout_s: float = _READY_TIMEOUT_S,
        min_quiet_s: float = MIN_QUIET_S,
        on_loading: Callable[[float], None] = lambda _fraction: None,
    ) -> None:
        self._settings = settings
        self._state_dir = state_dir
        self._max_in_flight = max_in_flight
        self._command = command
        self._ready_timeout_s = ready_timeout_s
        self._min_quiet_s = min_quiet_s
        self._on_loading = on_loading
        self._on_ready: list[Callable[[], None]] = []
        self._child: EngineChild | None = None
        self._ledger = Ledger()
        self._drain_rate = DrainRate()
        self._supervision = Supervision(has_fallback=settings.adapter_batching == "auto")
        self._ready: Ready | None = None
        self._is_retiring = False
        self._stats: Stats | None = None
        self._supervisor: asyncio.Task[None] | None = None

    @property
    def ready(self) -> Ready | None:
        """What is loaded, or None while the engine starts (or starts again)."""
        return self._ready

    @property
    def stats(self) -> Stats | None:
        """The engine's last report of its load."""
        return self._stats

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """See `Engine.replicas`."""
        return (Replica("0", "", self.status, self._ready, self._stats, self.n_restarts),)

    @property
    def status(self) -> EngineStatus:
        """Whether requests are answered, and if not, why and for how long."""
        return self._supervision.status(_now())

    @property
    def n_in_flight(self) -> int:
        """Requests submitted and not yet ended, including those that wait for the engine to start."""
        return len(self._ledger)

    @property
    def n_restarts(self) -> int:
        """Times that the engine process had to be started again."""
        return max(0, self.status.n_starts - 1)

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

    async def wait_lost(self) -> EngineError:
        """See `ManagedEngine.wait_lost`; it is started again however often it ends."""
        never: asyncio.Future[EngineError] = asyncio.get_running_loop().create_future()
        return await never

    async def stop(self) -> None:
        """End the engine; running requests fail with ``EngineUnavailable``. Safe to call twice."""
        self._supervision.stop()
        self._ledger.fail_all(EngineUnavailable("the server is shutting down"))
        if self._supervisor is not None:
            self._supervisor.cancel()
            with suppress(asyncio.CancelledError):
                await self._supervisor
            self._supervisor = None

    @asynccontextmanager
    async def generate(
        self, request: GenerationRequest, *, can_restart: bool = False
    ) -> AsyncIterator[AsyncGenerator[GenerationEvent, None]]:
        """See `Engine.generate`."""
        if self.n_in_flight >= self._max_in_flight:
            raise self._drain_rate.overloaded(self.n_in_flight, _now())
        if self._supervisor is None or self._supervision.state in (EngineState.FAILED, EngineState.STOPPED):
            raise self._unavailable()
        ticket = self._ledger.add(request, _now(), can_restart=can_restart)
        self._pass_on()
        events = ticket.take()
        patience = self._limit_wait(ticket)
        try:
            yield events
        finally:
            patience.cancel()
            await events.aclose()
            if self._ledger.remove(request.request_id):
                self._send(messages.Cancel(request.request_id))
            self._pass_on()

    def _limit_wait(self, ticket: Ticket | None = None) -> asyncio.TimerHandle:
        """Refuse a request, or all that wait, if the engine's start takes too long from now."""
        wait_s = max(self._ready_timeout_s, 2 * self._supervision.last_start_s)
        n_deaths = self.status.n_deaths

        def refuse() -> None:
            if self._ready is None and self.status.n_deaths == n_deaths:  # a later death has a limit of its own
                self._ledger.fail_waiting(EngineUnavailable(_LOADING, math.ceil(wait_s)), ticket)

        return asyncio.get_running_loop().call_later(wait_s, refuse)

    def _unavailable(self) -> EngineUnavailable:
        """Why nothing is answered at present, in words for clients."""
        status = self.status
        if status.state is EngineState.FAILED:
            retry_s = math.ceil((status.next_start_in_s or 0.0) + status.last_start_s) or 1
            return EngineUnavailable(f"the model cannot be loaded; the next attempt is made in {retry_s} s", retry_s)
        if status.state is EngineState.STOPPED:
            return EngineUnavailable("the server is shutting down")
        return EngineUnavailable(_LOADING)

    def _send(self, command: messages.Command) -> None:
        if self._child is not None:
            self._child.send(command)

    def _pass_on(self) -> None:
        """Send the engine every request that it may have now."""
        if self._child is None or self._ready is None:
            return
        if not self._is_busy():
            self._child.end_rest()
        for request in self._ledger.take_sendable():
            self._child.send(messages.Generate(request))

    def _is_busy(self) -> bool:
        """Whether the engine owes an event."""
        return self._ledger.n_sent > 0 or (self._child is not None and self._child.has_additions)

    def on_ready(self, callback: Callable[[], None]) -> None:
        """See `Engine.on_ready`."""
        self._on_ready.append(callback)

    def add_adapter(self, digest: str, path: Path) -> Awaitable[None]:
        """See `Engine.add_adapter`."""
        if self._child is None or self._child.ready is None:
            return _fail(EngineUnavailable(_LOADING))
        if not self._is_busy():
            self._child.end_rest()
        return asyncio.shield(self._child.add_adapter(digest, str(path)))

    def pin_adapter(self, digest: str, *, is_pinned: bool) -> None:
        """See `Engine.pin_adapter`."""
        if self._child is not None and self._ready is not None:
            self._child.send(messages.PinAdapter(digest, is_pinned))

    def remove_adapter(self, digest: str) -> Awaitable[None]:
        """See `Engine.remove_adapter`."""
        if self._child is None or self._child.ready is None:
            return _succeed()
        return asyncio.shield(self._child.remove_adapter(digest))

    async def _supervise(self, first: asyncio.Future[Ready]) -> None:
        """Run one engine process after the other until cancelled."""
        while True:
            self._supervision.begin_start(_now())
            reason = await self._run_next(first)
            ending = Ending(self._public(reason), isinstance(reason, EngineCrash), is_planned=self._is_retiring)
            delay_s = self._supervision.end(ending, _now())
            if ending.is_planned:
                continue
            if self._supervision.is_fallback:
                log.warning("%s before it was ready; starting it once with grouped batches", reason)
                continue
            if not first.done():
                first.set_exception(reason)
                return
            when = f"in {delay_s:.0f} s" if delay_s else "now"
            log.error("%s; starting it again %s", reason, when)
            if self._supervision.state is EngineState.FAILED:
                self._ledger.fail_waiting(self._unavailable())
            self._limit_wait()
            await asyncio.sleep(delay_s)

    def _public(self, reason: ModelLoadError) -> str:
        """The reason without the server's folders: clients see it."""
        return without_folders(str(reason), Path(self._settings.model), Path(self._settings.prefix_dir))

    async def _run_next(self, first: asyncio.Future[Ready]) -> ModelLoadError:
        """Run one engine process to its end; the reason of its end."""
        settings = self._settings
        if self._supervision.is_fallback:
            settings = dataclasses.replace(settings, adapter_batching="grouped")
        load = messages.Load(settings, self._state_dir)
        try:
            child = await EngineChild.spawn(self._command, load, self._min_quiet_s)
        except OSError as error:
            return ModelLoadError(f"the engine process cannot be started: {error.strerror}")
        self._child, self._is_retiring = child, False
        end: GemlaneError = EngineUnavailable("the server is shutting down")
        try:
            await child.run(self._is_busy, lambda event: self._notice(event, first))
            end = EngineDied("the engine process ended; it is being restarted")
            self._count_losses()
        finally:
            self._child = self._ready = None
            await child.end(end)
        return child.end_reason

    def _try_lanes_again(self, child: EngineChild) -> None:
        """End an idle engine that was started without lanes; the next start is one with lanes."""
        if child is not self._child or self._supervision.state is not EngineState.DEGRADED:
            return
        if self.n_in_flight:
            asyncio.get_running_loop().call_later(_IDLE_CHECK_S, self._try_lanes_again, child)
            return
        log.info("starting the engine with lanes again, after a start without them")
        self._is_retiring, self._ready = True, None
        child.retire()

    def _count_losses(self) -> None:
        """Let what can run again wait for the next engine, and say what was lost."""
        losses = self._ledger.lose_engine(_now())
        if losses.n_again or losses.n_cut or losses.n_harmful:
            log.error(
                "the engine ended: %d requests run again, %d were cut, %d are refused as the cause of two deaths",
                losses.n_again,
                losses.n_cut,
                losses.n_harmful,
            )

    def _notice(self, event: messages.Message, first: asyncio.Future[Ready]) -> None:
        """Take an event of the engine's."""
        match event:
            case Ready():
                self._become_ready(event, first)
            case messages.BatchingChanged() if self._ready is not None:
                mode, reason = event.adapter_batching, event.batching_reason
                self._ready = dataclasses.replace(self._ready, adapter_batching=mode, batching_reason=reason)
            case messages.Loading():
                self._on_loading(event.fraction)
            case Stats():
                self._stats = event
            case messages.Working():
                self._ledger.announce(event.request_ids)
            case (
                messages.Accepted()
                | messages.PromptScores()
                | messages.Started()
                | messages.Text()
                | messages.Finished()
                | messages.Failed()
            ):
                self._ledger.deliver(event)
                if isinstance(event, messages.Finished):
                    self._drain_rate.note_end(_now())
                if self._ledger.n_waiting:
                    self._pass_on()

    def _become_ready(self, event: Ready, first: asyncio.Future[Ready]) -> None:
        if reason := self._supervision.fallback_reason:
            event = dataclasses.replace(event, batching_reason=reason)
        self._supervision.become_ready(_now())
        if self._child is not None and self._supervision.state is EngineState.DEGRADED:
            delay_s = self._supervision.return_delay_s
            asyncio.get_running_loop().call_later(delay_s, self._try_lanes_again, self._child)
        self._ready = event
        for callback in self._on_ready:
            callback()
        if first.done():
            status = self.status
            log.info("the engine is %s again after %.1f s", status.state, status.last_start_s)
        else:
            first.set_result(event)
        self._pass_on()


def _now() -> float:
    return asyncio.get_running_loop().time()


async def _fail(error: GemlaneError) -> None:
    raise error


async def _succeed() -> None:
    pass
