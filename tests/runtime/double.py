"""A test double of the `Engine` protocol: it plays a script and records the requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from runtime.engines.protocol import GenerationEvent, Replica, Restarted
from runtime.engines.states import EngineState, EngineStatus
from runtime.errors import GemlaneError
from runtime.generation import FinishReason, GenerationRequest, Usage
from runtime.messages import Accepted, Finished, ModelInfo, Ready, Started, Stats, Text

RESTARTED: Final = object()
"""A step of a script: the engine ended, and the answer begins again."""
Step = str | Exception | asyncio.Event | object

READY = Ready(
    ModelInfo(
        name="tiny",
        size_bytes=1,
        n_params=1,
        n_layers=2,
        n_ctx=512,
        n_kv_cells=1024,
        n_parallel=2,
        device="CPU",
    ),
    adapter_batching="mixed",
    batching_reason="the script says so",
)


class ScriptedEngine:
    """Plays ``script`` for every request: text is sent, an exception is raised, an event is waited for."""

    def __init__(
        self, script: Sequence[Step] = ("Hello", " world"), *, reason: FinishReason = FinishReason.STOP
    ) -> None:
        self.script = list(script)
        self.reason = reason
        self.ready: Ready | None = READY
        self.stats: Stats | None = None
        self.state: EngineState | None = None
        """Instead of ready, or starting while nothing is loaded."""
        self.requests: list[GenerationRequest] = []
        self.cancelled: list[str] = []
        self.left = asyncio.Event()
        """Set whenever a request's context has been left."""
        self.waiting = asyncio.Event()
        """Set when an answer waits for an event of the script."""
        self.adapters: dict[str, Path] = {}
        self.refusals: dict[str, GemlaneError] = {}
        self.refuses_with: GemlaneError | None = None
        """What every adapter is refused with."""
        self.pins: set[str] = set()
        self.offers: list[str] = []
        """Every digest that was sent, in order."""
        self.in_use: dict[str, asyncio.Event] = {}
        """Removed adapters that requests still use, each until its event is set."""
        self._on_ready: list[Callable[[], None]] = []
        self.n_in_flight = 0
        self.n_restarts = 0

    @property
    def replicas(self) -> tuple[Replica, ...]:
        return (Replica("0", "", self.status, self.ready, self.stats, self.n_restarts),)

    @property
    def status(self) -> EngineStatus:
        return EngineStatus(self.state or (EngineState.READY if self.ready else EngineState.STARTING))

    @asynccontextmanager
    async def generate(
        self, request: GenerationRequest, *, can_restart: bool = False
    ) -> AsyncIterator[AsyncGenerator[GenerationEvent, None]]:
        self.can_restart = can_restart
        self.requests.append(request)
        is_finished = False

        async def play() -> AsyncGenerator[GenerationEvent, None]:
            nonlocal is_finished
            pieces = 0
            if not (self.script and isinstance(self.script[0], Exception)):
                yield Accepted(request.request_id, 7)
                yield Started(request.request_id, 7)
            for step in self.script:
                if isinstance(step, Exception):
                    raise step
                if step is RESTARTED:
                    yield Restarted(request.request_id)
                elif isinstance(step, asyncio.Event):
                    self.waiting.set()
                    await step.wait()
                elif isinstance(step, str):
                    pieces += 1
                    yield Text(request.request_id, step)
            is_finished = True
            yield Finished(request.request_id, self.reason, Usage(7, pieces))

        events = play()
        try:
            yield events
        finally:
            await events.aclose()
            if not is_finished:
                self.cancelled.append(request.request_id)
            self.left.set()

    def on_ready(self, callback: Callable[[], None]) -> None:
        self._on_ready.append(callback)

    def restart(self) -> None:
        """Become ready as an engine that knows no adapter."""
        self.adapters.clear()
        self.pins.clear()
        for callback in self._on_ready:
            callback()

    def add_adapter(self, digest: str, path: Path) -> asyncio.Future[None]:
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.offers.append(digest)
        error = self.refuses_with or self.refusals.get(digest)
        if error is not None:
            answer.set_exception(error)
        else:
            self.adapters[digest] = path
            answer.set_result(None)
        return answer

    def pin_adapter(self, digest: str, *, is_pinned: bool) -> None:
        (self.pins.add if is_pinned else self.pins.discard)(digest)

    async def remove_adapter(self, digest: str) -> None:
        self.adapters.pop(digest, None)
        if digest in self.in_use:
            await self.in_use[digest].wait()
