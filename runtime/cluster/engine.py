"""The engine as replicas on a Ray cluster, as the web process sees them."""

from __future__ import annotations

import asyncio
import logging
import math
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import ray
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from runtime.cluster.application import Application, deploy, leave
from runtime.cluster.distribution import Distribution
from runtime.cluster.members import Members
from runtime.cluster.router import AffinityRouter
from runtime.cluster.values import Item, Report, Unreadable
from runtime.config import Settings
from runtime.engines.drain import DrainRate
from runtime.engines.ledger import MAX_RUNS
from runtime.engines.protocol import GenerationEvent, Replica, Restarted
from runtime.engines.states import EngineState, EngineStatus
from runtime.errors import EngineDied, EngineError, EngineUnavailable, GemlaneError, ModelLoadError
from runtime.generation import GenerationRequest
from runtime.messages import Finished, PromptScores, Ready, Stats, Text

log = logging.getLogger(__name__)

_LOST: Final = (RayError, RayServeException)
"""What Ray raises when a replica, its machine or the connection to it is gone."""
_POLL_S: Final = 1.0
_REPORT_TIMEOUT_S: Final = 10.0
_READY_TIMEOUT_S: Final = 60.0
"""How long a request waits at least for a replica that takes it."""
_STOP_TIMEOUT_S: Final = 10.0
_PLACING_S: Final = 30.0
_HEAD_TIMEOUT_S: Final = 3.0
_HEAD_LOST_S: Final = 5.0
"""How long the head does not answer before requests are refused."""
_HEAD_GONE_S: Final = 15.0
"""How long it does not answer before the server ends. Ray would end this process after 60 s, and takes 7 to 31 s of
them to shut down."""
_LOADING: Final = "the model is being loaded; try again in a moment"
_UNAVAILABLE: Final = {
    EngineState.FAILED: "the cluster does not answer; try again in a moment",
    EngineState.STOPPED: "the server is shutting down",
}
_CUT: Final = "the replica ended while this request was running"


class RayEngine:
    """Implements `runtime.engines.protocol.ManagedEngine` with replicas on Ray. One event loop owns it."""

    def __init__(
        self,
        settings: Settings,
        *,
        max_in_flight: int,
        on_loading: Callable[[float], None] = lambda _fraction: None,
        router: type[Any] = AffinityRouter,
    ) -> None:
        self._settings = settings
        self._max_in_flight = max_in_flight
        self._on_loading = on_loading
        self._router = router
        self._on_ready: list[Callable[[], None]] = []
        self._members = Members(settings.cluster.replicas)
        self._application: Application | None = None
        self._deploying: asyncio.Task[Application] | None = None
        self._watching: tuple[asyncio.Task[None], ...] = ()
        self._head_lost = asyncio.Event()
        self._n_in_flight = 0
        self._drain_rate = DrainRate()
        self._adapters = Distribution(self._members, self._call, ray.put)

    @property
    def ready(self) -> Ready | None:
        """See `Engine.ready`; the replicas are alike."""
        return self._members.ready

    @property
    def stats(self) -> Stats | None:
        """See `Engine.stats`."""
        return self._members.stats

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """See `Engine.replicas`."""
        return self._members.replicas

    @property
    def status(self) -> EngineStatus:
        """See `Engine.status`."""
        return self._members.status

    @property
    def n_in_flight(self) -> int:
        """See `Engine.n_in_flight`."""
        return self._n_in_flight

    @property
    def n_restarts(self) -> int:
        """Engine processes that were started again, and replicas that were lost."""
        return self._members.n_restarts

    async def start(self) -> Ready:
        """See `ManagedEngine.start`."""
        work = asyncio.to_thread(deploy, self._settings, self._max_in_flight, self._router)
        self._deploying = asyncio.create_task(work)
        self._application = await asyncio.shield(self._deploying)
        _take_sigterm_back()
        first: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self._watching = (
            asyncio.create_task(self._watch(self._application, first), name="replicas"),
            asyncio.create_task(self._watch_head(self._application.head), name="head"),
        )
        return await asyncio.shield(first)

    async def wait_lost(self) -> EngineError:
        """See `ManagedEngine.wait_lost`; without its head no replica is replaced, and Ray ends the processes soon."""
        await self._head_lost.wait()
        if self._is_ours:
            return EngineError("the Ray of this server does not answer any more; start the server again")
        head = self._application.head if self._application is not None else ""
        return EngineError(
            f"the head of the Ray cluster at {head} does not answer any more; start Ray there again (ray start "
            "--head), join the other machines to it, and start this server again"
        )

    @property
    def _is_ours(self) -> bool:
        """Whether Ray was started by this process."""
        return not self._settings.cluster.ray_address

    async def stop(self) -> None:
        """See `ManagedEngine.stop`."""
        self._members.stop()
        self._adapters.close()
        for task in self._watching:
            task.cancel()
        if self._deploying is not None:
            with suppress(GemlaneError):
                self._application = await self._deploying
            self._deploying = None
            application = None if self._members.is_head_lost else self._application
            if application is not None:
                with suppress(TimeoutError, *_LOST):
                    await application.handle.broadcast("stop").results_async(timeout_s=_STOP_TIMEOUT_S)
            await asyncio.to_thread(leave, application, is_ours=self._is_ours)

    # Answers

    @asynccontextmanager
    async def generate(
        self, request: GenerationRequest, *, can_restart: bool = False
    ) -> AsyncIterator[AsyncGenerator[GenerationEvent, None]]:
        """See `Engine.generate`."""
        if self._n_in_flight >= self._max_in_flight:
            raise self._drain_rate.overloaded(self._n_in_flight, asyncio.get_running_loop().time())
        if self._application is None or self.status.state in _UNAVAILABLE:
            raise EngineUnavailable(_UNAVAILABLE.get(self.status.state, _LOADING))
        self._n_in_flight += 1
        self._adapters.begin_use(request.blend)
        events = self._follow(request, self._application, can_restart=can_restart)
        try:
            yield events
        finally:
            await events.aclose()
            self._n_in_flight -= 1
            self._adapters.end_use(request.blend)

    async def _follow(
        self, request: GenerationRequest, application: Application, *, can_restart: bool
    ) -> AsyncGenerator[GenerationEvent, None]:
        """The events of an answer, over as many replicas as that takes."""
        n_losses, has_text = 0, False
        while True:
            try:
                async with aclosing(self._attempt(request, application, can_restart=can_restart)) as events:
                    async for event in events:
                        has_text = has_text or isinstance(event, PromptScores | Text | Finished)
                        yield event
                        if isinstance(event, Finished):
                            self._drain_rate.note_end(asyncio.get_running_loop().time())
                            return
                log.warning("a replica ended an answer without saying how")
            except _LOST as error:
                log.warning("a replica was lost with a request: %s", _line(error))
            n_losses += 1
            if n_losses >= MAX_RUNS or (has_text and not can_restart):
                raise EngineDied(_CUT)
            if has_text:
                has_text = False
                yield Restarted(request.request_id)

    async def _attempt(
        self, request: GenerationRequest, application: Application, *, can_restart: bool
    ) -> AsyncGenerator[GenerationEvent, None]:
        """The events of an answer from one replica; the end of the iteration cancels what still runs."""
        paths = self._adapters.paths_of(request.blend)
        remote = application.handle.generate.options(stream=True)
        while True:
            response = remote.remote(request, paths, can_restart=can_restart)
            is_over, missing = False, None
            try:
                async for item in self._items(response):
                    is_over = isinstance(item, Finished | GemlaneError | Unreadable)
                    if isinstance(item, GemlaneError):
                        raise item
                    if isinstance(item, Unreadable):
                        missing = item
                        break
                    yield item
            finally:
                if not is_over:
                    response.cancel()
            if missing is None:
                return
            refusal = await self._adapters.copy(missing.replica_id, missing.digest, Path(paths[missing.digest]))
            if refusal is not None:
                raise refusal

    async def _items(self, response: Any) -> AsyncGenerator[Item, None]:
        """What all messages of an answer hold; a request waits for a replica as long as a start may take.

        Raises:
            EngineUnavailable: no replica took it in time.
        """
        wait_s = max(_READY_TIMEOUT_S, 2 * self.status.last_start_s)
        try:
            message = await asyncio.wait_for(anext(response), wait_s)
        except TimeoutError:
            raise EngineUnavailable(_LOADING, math.ceil(wait_s)) from None
        except StopAsyncIteration:
            return
        for item in message:
            yield item
        async for message in response:
            for item in message:
                yield item

    # Adapters

    def on_ready(self, callback: Callable[[], None]) -> None:
        """See `Engine.on_ready`; called for every replica that joins."""
        self._on_ready.append(callback)

    def add_adapter(self, digest: str, path: Path) -> Awaitable[None]:
        """See `Engine.add_adapter`; refused if any replica refuses it."""
        return self._adapters.add(digest, path)

    def pin_adapter(self, digest: str, *, is_pinned: bool) -> None:
        """See `Engine.pin_adapter`."""
        self._adapters.pin(digest, is_pinned=is_pinned)

    def remove_adapter(self, digest: str) -> Awaitable[None]:
        """See `Engine.remove_adapter`."""
        return self._adapters.remove(digest)

    async def _call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """What a replica answers, or an ``EngineDied`` if it is lost."""
        assert self._application is not None
        try:
            return await getattr(self._application.handle, method).remote(*arguments, **options)
        except _LOST as error:
            return EngineDied(_line(error))

    # Replicas

    async def _watch(self, application: Application, first: asyncio.Future[Ready]) -> None:
        """Ask every replica for its state, again and again, until cancelled."""
        clock = asyncio.get_running_loop().time
        deadline, is_placed = clock() + _PLACING_S, False
        while True:
            reports = None if self._members.is_head_lost else await self._ask(application)
            is_placed = is_placed or bool(reports)
            if not is_placed and clock() > deadline:
                log.warning("Ray has placed no replica yet; ray status shows what each machine has left")
                deadline = math.inf
            if reports is not None:
                self._take(reports, first)
            await asyncio.sleep(_POLL_S)

    async def _watch_head(self, address: str) -> None:
        """Ask the cluster's head whether it is there, again and again, until cancelled."""
        clock = asyncio.get_running_loop().time
        answered_at = clock()
        while True:
            if await _answers(address):
                answered_at = clock()
            self._members.note_head(address, is_lost=clock() - answered_at > _HEAD_LOST_S)
            if clock() - answered_at > _HEAD_GONE_S:
                self._head_lost.set()
            await asyncio.sleep(_POLL_S)

    async def _ask(self, application: Application) -> list[Report] | None:
        """The reports of all replicas that answer; None if it is not known which there are."""
        try:
            response = application.handle.broadcast("report")
            answers = await response.results_async(timeout_s=_REPORT_TIMEOUT_S, return_exceptions=True)
        except TimeoutError:
            return None
        except _LOST:
            return []
        for answer in answers:
            if not isinstance(answer, Report | RayError):
                log.error("a replica answers with %r", answer)
        return [answer for answer in answers if isinstance(answer, Report)]

    def _take(self, reports: list[Report], first: asyncio.Future[Ready]) -> None:
        """Note who is there; offer everything when a replica joins."""
        for report in reports:
            for line in report.log:
                logging.getLogger(line.logger).log(line.level, "replica %s: %s", report.replica.name, line.message)
        if self._members.take(reports, asyncio.get_running_loop().time()):
            for callback in self._on_ready:
                callback()
        if first.done():
            return
        self._on_loading(min((report.loaded for report in reports), default=0.0))
        if self._members.failure:
            first.set_exception(ModelLoadError(self._members.failure))
        elif self._members.is_complete and self._members.ready is not None:
            first.set_result(self._members.ready)


def _take_sigterm_back() -> None:
    """Let SIGTERM be handled as before: Ray's native handler writes a stack trace first."""
    with suppress(ValueError):  # another thread than the main one has no handler to restore
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


async def _answers(address: str) -> bool:
    """Whether something accepts connections at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, int(port)), _HEAD_TIMEOUT_S)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


def _line(error: BaseException) -> str:
    """The first line of Ray's words, which can be pages."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
