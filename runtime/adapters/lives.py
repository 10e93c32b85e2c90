"""The lives of all generations of adapters: each move is checked and reported, and the engine has its part in them.

Belongs to the event loop. The store says which generations there are, and begins and retires them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Coroutine
from typing import Any

from runtime.adapters.entry import AdapterEntry, Generation, file_of
from runtime.adapters.life import AdapterState, check_move
from runtime.adapters.pins import Pins
from runtime.adapters.views import AdapterMove, CheckedAdapter
from runtime.engines.protocol import Engine
from runtime.errors import EngineError, GemlaneError


class Lives:
    """Moves generations from state to state; offers them to the engine, and frees those that retire."""

    def __init__(
        self,
        engine: Engine,
        entries: Collection[AdapterEntry],
        pins: Pins,
        on_freed: Callable[[CheckedAdapter], None],
    ) -> None:
        """Offer everything to ``engine`` each time it becomes ready.

        Args:
            engine: where generations are offered and retired.
            entries: all adapters of the store, as they are at each moment.
            pins: which names keep a lane.
            on_freed: called when no generation has a content any more, so that its file may be deleted.
        """
        self._engine = engine
        self._entries = entries
        self._pins = pins
        self._on_freed = on_freed
        self._retiring: list[Generation] = []
        self._listeners: list[Callable[[AdapterMove], None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        engine.on_ready(self._offer_all)

    @property
    def retiring(self) -> tuple[Generation, ...]:
        """The generations that retire, oldest first; requests may still run under them."""
        return tuple(self._retiring)

    def on_move(self, listener: Callable[[AdapterMove], None]) -> None:
        """Call ``listener`` at every move of a life, in the event loop."""
        self._listeners.append(listener)

    def begin(self, generation: Generation) -> None:
        """Report a new generation, in its first state."""
        self._report(generation, None, generation.state)

    def move(self, generation: Generation, after: AdapterState, error: GemlaneError | None = None) -> None:
        """Move a generation to a state, with the error that led there.

        Raises:
            IllegalAdapterMoveError: the table of moves does not have this one.
        """
        check_move(generation.state, after)
        before, generation.state = generation.state, after
        generation.error, generation.reason = error, str(error) if error else ""
        self._report(generation, before, after)

    def offer(self, generation: Generation) -> Coroutine[Any, Any, None]:
        """Send a checked generation to the engine now; return the wait for its answer, which moves the generation."""
        assert generation.checked is not None
        if generation.state is not AdapterState.OFFERED:
            self.move(generation, AdapterState.OFFERED)
        return self._settle(generation, self._engine.add_adapter(generation.checked.digest, generation.checked.path))

    def retire(self, generation: Generation) -> None:
        """Let no new request have a generation; its file goes once no request runs under it."""
        self.move(generation, AdapterState.RETIRING)
        self._retiring.append(generation)
        self._start(self._free(generation))

    async def close(self) -> None:
        """Stop waiting for the engine."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _settle(self, generation: Generation, answer: Awaitable[None]) -> None:
        """Move a generation to where the engine's answer leads."""
        error: GemlaneError | None = None
        after = AdapterState.READY
        try:
            await answer
        except EngineError:  # not ready, or not any more: offered again once an engine is
            after = AdapterState.CHECKED
        except GemlaneError as caught:
            after, error = AdapterState.REFUSED, caught
        if generation.state is AdapterState.OFFERED:
            self.move(generation, after, error)
        if generation.state is AdapterState.READY and generation.digest and generation.adapter.name in self._pins:
            self._engine.pin_adapter(generation.digest, is_pinned=True)

    def _offer_all(self) -> None:
        """An engine became ready: send it everything, before it is sent any request."""
        for adapter in self._entries:
            for generation in (adapter.current, adapter.candidate):
                if generation is None or generation.checked is None or generation.state is AdapterState.RETIRING:
                    continue
                self._start(self.offer(generation))

    async def _free(self, generation: Generation) -> None:
        """Wait until no request runs under a retired generation, then let its file go."""
        if generation.digest is not None:
            heir = file_of(generation.digest, self._entries)
            if heir is None:
                await self._engine.remove_adapter(generation.digest)
            elif generation.checked and heir.path != generation.checked.path:  # the engine may have opened that one
                with contextlib.suppress(GemlaneError):  # the next engine is offered it anyway
                    await self._engine.add_adapter(heir.digest, heir.path)
        self._retiring.remove(generation)
        self._report(generation, AdapterState.RETIRING, None)
        if generation.checked is not None and file_of(generation.checked.digest, self._entries) is None:
            self._on_freed(generation.checked)

    def _report(self, generation: Generation, before: AdapterState | None, after: AdapterState | None) -> None:
        new = generation.adapter
        move = AdapterMove(new.id, new.name, generation.digest, before, after, generation.reason)
        for listener in self._listeners:
            listener(move)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
