"""What the web side may ask of an engine, wherever the engine runs."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

from runtime.generation import GenerationRequest
from runtime.messages import Finished, Ready, Started, Stats, Text

GenerationEvent = Started | Text | Finished


class Engine(Protocol):
    """What everything above the pipe may ask of an engine, wherever it runs."""

    @property
    def ready(self) -> Ready | None:
        """What is loaded, or None while the engine starts (or starts again)."""

    @property
    def stats(self) -> Stats | None:
        """The engine's last word about its load."""

    @property
    def n_in_flight(self) -> int:
        """Requests submitted and not yet ended."""

    @property
    def n_restarts(self) -> int:
        """Times that the engine had to be started again."""

    def generate(
        self, request: GenerationRequest
    ) -> AbstractAsyncContextManager[AsyncGenerator[GenerationEvent, None]]:
        """Submit ``request`` and give its events: ``Started``, ``Text`` ..., ``Finished``.

        Leaving the context before ``Finished`` cancels the request. Events wait in memory until they are taken; they
        are bounded by ``max_tokens`` and the context window.

        Raises:
            Overloaded: the queue is full; nothing was submitted.
            EngineUnavailable: the engine is not ready, and was not within half a minute.
            GemlaneError: while iterating, the engine's ``Failed`` as the class its code names; ``EngineDied`` if the
                process ended.
        """

    async def add_adapter(self, digest: str, path: Path) -> None:
        """Make an adapter known, now and after every restart.

        Raises:
            AdapterError: the engine refused it, with the reason.
        """

    async def remove_adapter(self, digest: str) -> None:
        """Forget an adapter; requests that run under it finish under it."""
