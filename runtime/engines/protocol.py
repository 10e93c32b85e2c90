"""What the web side may ask of an engine, wherever the engine runs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from runtime.engines.states import EngineStatus
from runtime.errors import EngineError
from runtime.generation import GenerationRequest
from runtime.messages import Accepted, Finished, PromptScores, Ready, Started, Stats, Text


@dataclass(frozen=True, slots=True)
class Restarted:
    """The engine ended and the answer begins again: all text before this event is void."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Replica:
    """One engine with its own lanes and prefixes, and where it runs."""

    name: str
    """``0`` for the engine of this machine; on a cluster a number that a replacement takes over."""
    node: str
    """The address of its machine; empty for this one."""
    status: EngineStatus
    ready: Ready | None = None
    stats: Stats | None = None
    n_restarts: int = 0


GenerationEvent = Accepted | PromptScores | Started | Text | Finished | Restarted


class Engine(Protocol):
    """What everything above the pipe may ask of an engine, wherever it runs."""

    @property
    def ready(self) -> Ready | None:
        """What is loaded, or None while the engine starts (or starts again)."""

    @property
    def stats(self) -> Stats | None:
        """The engine's last report of its load; that of all replicas together."""

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """Every replica that is known, sorted by name; the engine of this machine is the only one of its kind."""

    @property
    def status(self) -> EngineStatus:
        """Whether requests are answered, and if not, why and for how long."""

    @property
    def n_in_flight(self) -> int:
        """Requests submitted and not yet ended."""

    @property
    def n_restarts(self) -> int:
        """Times that the engine had to be started again."""

    def generate(
        self, request: GenerationRequest, *, can_restart: bool = False
    ) -> AbstractAsyncContextManager[AsyncGenerator[GenerationEvent, None]]:
        """Submit ``request`` and give its events: ``Accepted``, ``Started``, ``Text`` ..., ``Finished``.

        An engine that ends while the request waits or computes takes nothing with it: the request runs again, once.
        After text was taken that needs ``can_restart``: the caller then gets ``Restarted`` and starts again.

        Leaving the context before ``Finished`` cancels the request. Events wait in memory until they are taken; they
        are bounded by ``max_tokens`` and the context window.

        Raises:
            Overloaded: the queue is full; nothing was submitted.
            HarmfulRequest: the same request ended the engine twice; nothing was submitted.
            EngineUnavailable: while iterating, the engine cannot be started, or was not ready in time.
            GemlaneError: while iterating, the engine's ``Failed`` as the class its code names; ``EngineDied`` if the
                process ended.
        """

    def on_ready(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` each time an engine becomes ready, before it is sent any request.

        The start, a restart after a crash, and a replica that joins are one event: an engine that knows no adapter.
        """

    def add_adapter(self, digest: str, path: Path) -> Awaitable[None]:
        """Send an adapter now, before any later request; awaiting gives the answer. A known one is added again.

        Raises:
            EngineUnavailable: while awaiting; no engine is ready, so nothing was sent.
            EngineDied: while awaiting; the engine ended before it answered.
            AdapterError: while awaiting; the engine refused it, with the reason.
        """

    def pin_adapter(self, digest: str, *, is_pinned: bool) -> None:
        """Keep a known adapter's weights in a lane, or not any more; each engine that becomes ready has no pins."""

    def remove_adapter(self, digest: str) -> Awaitable[None]:
        """Let no later request use an adapter; awaiting ends once no request uses it any more, or it is added again."""


class ManagedEngine(Engine, Protocol):
    """An engine as the composition root has it: started and stopped."""

    async def start(self) -> Ready:
        """Start, and wait until the model is loaded.

        Raises:
            ModelLoadError: the model cannot be loaded; the message is for the user.
            ConfigError: the engine cannot run with these settings here.
        """

    async def wait_lost(self) -> EngineError:
        """Wait until the engine cannot come back by itself; the reason, for the user."""

    async def stop(self) -> None:
        """End; running requests fail with ``EngineUnavailable``. Safe to call twice."""
