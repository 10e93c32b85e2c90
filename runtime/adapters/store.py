"""The one owner of every adapter: name, id, digest, state, reason, size, rank, source and last use.

The folder and the uploads tell it what arrived, the engine what it takes; finetunes, the admin API, ``/v1/models``,
``/health`` and metrics are views of it. Belongs to the event loop; knows nothing of HTTP and of file formats.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from typing import Any, Final

from runtime.adapters.entry import AdapterEntry, Generation, file_of, view_of
from runtime.adapters.life import USABLE, AdapterState, check_move
from runtime.adapters.lock import check_locked
from runtime.adapters.pins import Pins
from runtime.adapters.views import (
    AdapterMove,
    AdapterView,
    CheckedAdapter,
    NewAdapter,
    Source,
    normal,
    now,
)
from runtime.engines.protocol import Engine
from runtime.errors import (
    AdapterBudget,
    AdapterConflict,
    AdapterError,
    EngineError,
    GemlaneError,
    GenerationMismatch,
    IncompleteAdapter,
    OutOfMemory,
    UnknownAdapter,
    from_code,
)
from runtime.generation import Blend, BlendMember

log = logging.getLogger(__name__)

Prepare = Callable[[], Awaitable[CheckedAdapter]]
"""Reads, checks and converts the files of a new generation; raises a GemlaneError if that fails."""
Commit = Callable[[CheckedAdapter], None]
"""Writes down that a generation is the one to serve; raises a StorageError if that fails."""
_SHOWN_DIGITS: Final = 12  # of a digest, in the log


class Store:
    """All adapters of one server."""

    def __init__(
        self,
        engine: Engine,
        max_adapters: int,
        on_freed: Callable[[CheckedAdapter], None],
        pins: Pins | None = None,
        lock: Mapping[str, str] | None = None,
    ) -> None:
        """Start empty, and offer everything to ``engine`` each time it becomes ready.

        Args:
            engine: where adapters are offered and retired.
            max_adapters: how many there may be; those of the folder are always taken in, and count.
            on_freed: called when no generation has a content any more, so that its file may be deleted.
            pins: which names keep a lane; without it none can.
            lock: name -> digest of the only adapters that may be served; None locks nothing.
        """
        self._lock = lock
        self._engine = engine
        self._max_adapters = max_adapters
        self._on_freed = on_freed
        self._pins = pins or Pins(0)
        self._adapters: dict[str, AdapterEntry] = {}
        self._id_of_name: dict[str, str] = {}
        self._retiring: list[Generation] = []
        self._listeners: list[Callable[[AdapterMove], None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        engine.on_ready(self._offer_all)

    # Views

    def snapshot(self) -> tuple[AdapterView, ...]:
        """Every adapter, sorted by name; those that are retiring come last."""
        known = sorted(self._adapters.values(), key=lambda one: (one.new.name, one.new.id))
        removed = (one for one in self._retiring if one.adapter.id not in self._adapters)
        return (*map(view_of, known), *(view_of(AdapterEntry(one.adapter, one, now())) for one in removed))

    def usable(self) -> Iterator[AdapterView]:
        """Those that requests may name, sorted by name."""
        return (view for view in self.snapshot() if view.is_usable)

    def find(self, name_or_id: str) -> AdapterView | None:
        """The adapter of that id, else of that name, else None."""
        adapter = self._find(name_or_id)
        return view_of(adapter) if adapter else None

    def name_of(self, digest: str) -> str | None:
        """A name of the adapter that serves that content, or None."""
        return next((one.new.name for one in self._adapters.values() if one.current.digest == digest), None)

    def count_by_state(self) -> dict[str, int]:
        """How many adapters are in each state."""
        counts = Counter(view.state for view in self.snapshot())
        return {state.value: counts[state] for state in AdapterState}

    def is_free(self, name: str) -> bool:
        """Whether a new adapter may take ``name``: no adapter has it as a name or as an id."""
        return self._find(name) is None

    def on_move(self, listener: Callable[[AdapterMove], None]) -> None:
        """Call ``listener`` at every move of a life, in the event loop."""
        self._listeners.append(listener)

    # Use

    def resolve(self, name_or_id: str) -> Blend:
        """The adapter as what the engine applies; counts as a use.

        Raises:
            UnknownAdapter: no adapter has that id or name.
            IncompleteAdapter: one has, but its files are not all there, or are still being converted.
            AdapterError: it was refused; the class and the message are those of the refusal.
        """
        return Blend((BlendMember(self.member(name_or_id), name=name_or_id),))

    def member(self, name_or_id: str) -> str:
        """The content digest of an adapter, for a blend; counts as a use. Raises as ``resolve``."""
        adapter = self._find(name_or_id)
        if adapter is None:
            raise UnknownAdapter("no adapter has that name or id; GET /health lists those there are", name_or_id)
        generation = adapter.current
        if generation.state is AdapterState.REFUSED and generation.error is not None:
            raise from_code(generation.error.code, f"adapter {adapter.new.name}: {generation.error}")
        if generation.state not in USABLE or generation.digest is None:
            waits_for = generation.reason or "it still waits for one of its two files"
            reason = "it is being converted" if generation.state is AdapterState.CONVERTING else waits_for
            raise IncompleteAdapter(f"adapter {adapter.new.name}: {reason}")
        adapter.n_uses += 1
        adapter.last_used_at = now()
        return generation.digest

    # Changes

    def add(self, new: NewAdapter) -> AdapterView:
        """Know an adapter by name; it waits for its files.

        Raises:
            AdapterConflict: its name or id is taken.
            AdapterBudget: there are as many adapters as there may be; those of the folder are taken in regardless.
        """
        if not self.is_free(new.name) or new.id in self._adapters:
            raise AdapterConflict(f"the adapter name {new.name[:200]!r} is taken; choose another")
        if new.source is Source.UPLOAD and len(self._adapters) >= self._max_adapters:
            raise AdapterBudget(f"this server keeps {self._max_adapters} adapters at most (--max-adapters)")
        self._id_of_name[normal(new.name)] = new.id
        return self._add(new)

    def add_refused(self, new: NewAdapter, error: GemlaneError) -> AdapterView:
        """Show an adapter that cannot have its name, with the reason; requests cannot name it."""
        view = self._add(new)
        self._move(self._adapters[new.id].current, AdapterState.REFUSED, error)
        return view

    async def wait_for_files(self, adapter_id: str, reason: str) -> None:
        """Note why files of an adapter are missing; what it serves, it goes on to serve.

        Raises:
            UnknownAdapter: there is no such adapter (any more).
        """
        async with self._changing(adapter_id) as adapter:
            self._begin(adapter).reason = reason

    async def fill(
        self, adapter_id: str, prepare: Prepare, commit: Commit | None = None, expected_digest: str | None = None
    ) -> AdapterView:
        """Bring a new generation in: prepare it, offer it to the engine, and serve it under the adapter's name.

        What the adapter served before goes on to be served until then; requests that run under it finish under it.

        Args:
            adapter_id: the adapter.
            prepare: gives the content.
            commit: called once the engine has taken the generation, before any request can name it.
            expected_digest: the content that this change is meant for; None: any content.

        Raises:
            UnknownAdapter: there is no such adapter (any more).
            GenerationMismatch: it has another content than ``expected_digest``.
            AdapterError: the content is refused; the reason is kept and shown.
            StorageError, OutOfMemory, ConversionDied: it is our own fault; the adapter is as it was before.
        """
        async with self._changing(adapter_id, expected_digest) as adapter:
            generation = self._begin(adapter)
            try:
                await self._bring_in(generation, prepare)
                if commit and generation.checked:
                    commit(generation.checked)
            except AdapterError as error:
                if generation.state is not AdapterState.REFUSED:
                    self._move(generation, AdapterState.REFUSED, error)
                raise
            except BaseException as error:
                self._give_up(adapter, generation, error)
                raise
            self._publish(adapter, generation)
            return view_of(adapter)

    async def remove(
        self, adapter_id: str, expected_digest: str | None = None, commit: Callable[[], None] | None = None
    ) -> AdapterView:
        """Forget an adapter: no new request can name it, and its memory goes once no request runs under it.

        Args:
            adapter_id: the adapter.
            expected_digest: as in ``fill``.
            commit: called before that; what it raises leaves the adapter as it is.

        Raises:
            UnknownAdapter, GenerationMismatch: as ``fill``.
        """
        async with self._changing(adapter_id, expected_digest) as adapter:
            if commit:
                commit()
            del self._adapters[adapter_id]
            if self._id_of_name.get(normal(adapter.new.name)) == adapter_id:
                del self._id_of_name[normal(adapter.new.name)]
            for generation in (adapter.candidate, adapter.current):
                if generation is not None:
                    self._retire(generation)
            adapter.candidate = None
            return view_of(adapter)

    async def pin(self, adapter_id: str, *, is_pinned: bool) -> AdapterView:
        """Keep the weights of an adapter in a lane, or let the lane be given to others again.

        Raises:
            UnknownAdapter: there is no such adapter (any more).
            AdapterBudget: the pinned adapters would leave no lane to the others.
            StorageError: it cannot be written down.
        """
        async with self._changing(adapter_id) as adapter:
            self._pins.set(adapter.new.name, is_pinned=is_pinned)
            adapter.is_pinned = is_pinned
            if adapter.current.digest is not None:
                self._engine.pin_adapter(adapter.current.digest, is_pinned=is_pinned)
            return view_of(adapter)

    async def close(self) -> None:
        """Stop waiting for the engine."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # How

    def _find(self, name_or_id: str) -> AdapterEntry | None:
        adapter_id = self._id_of_name.get(normal(name_or_id), name_or_id)
        return self._adapters.get(name_or_id) or self._adapters.get(adapter_id)

    @contextlib.asynccontextmanager
    async def _changing(self, adapter_id: str, expected_digest: str | None = None) -> AsyncIterator[AdapterEntry]:
        """Lock an adapter; a second change waits."""
        adapter = self._adapters.get(adapter_id)
        if adapter is None:
            raise UnknownAdapter("there is no such adapter", adapter_id)
        async with adapter.lock:
            if self._adapters.get(adapter_id) is not adapter:
                raise UnknownAdapter("the adapter was deleted meanwhile", adapter.new.name)
            if expected_digest is not None and expected_digest != adapter.current.digest:
                raise GenerationMismatch(
                    f"adapter {adapter.new.name} has another content than this change is meant for; look at it again"
                )
            yield adapter

    def _add(self, new: NewAdapter) -> AdapterView:
        generation = Generation(new)
        adapter = self._adapters[new.id] = AdapterEntry(new, generation, new.created_at)
        adapter.is_pinned = new.name in self._pins
        self._report(generation, None, generation.state)
        return view_of(adapter)

    def _begin(self, adapter: AdapterEntry) -> Generation:
        """A generation that awaits its files: the adapter's own while it serves nothing, else a candidate beside it."""
        is_serving = adapter.current.state in USABLE
        earlier = adapter.candidate if is_serving else adapter.current
        if earlier is not None and earlier.state is AdapterState.AWAITING:
            return earlier
        fresh = Generation(adapter.new)
        self._report(fresh, None, fresh.state)
        if is_serving:
            adapter.candidate = fresh
        else:
            adapter.current = fresh
        if earlier is not None:
            self._retire(earlier)
        return fresh

    async def _bring_in(self, generation: Generation, prepare: Prepare) -> None:
        """Take a generation from its files to the engine."""
        self._move(generation, AdapterState.CONVERTING)
        try:
            checked = await prepare()
        except MemoryError as error:
            raise OutOfMemory("there is not enough memory to read this adapter; try again later") from error
        if self._lock is not None:
            check_locked(self._lock, generation.adapter.name, checked.digest)
        for warning in checked.warnings:
            log.warning("adapter %s: %s", generation.adapter.name, warning)
        generation.checked = checked
        self._move(generation, AdapterState.CHECKED)
        await self._settle(generation, self._offer(generation))
        if generation.error is not None:
            raise generation.error

    def _offer(self, generation: Generation) -> Awaitable[None]:
        """Send a generation to the engine now; the answer is to be awaited."""
        assert generation.checked is not None
        if generation.state is not AdapterState.OFFERED:
            self._move(generation, AdapterState.OFFERED)
        return self._engine.add_adapter(generation.checked.digest, generation.checked.path)

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
            self._move(generation, after, error)
        if generation.state is AdapterState.READY and generation.digest and generation.adapter.name in self._pins:
            self._engine.pin_adapter(generation.digest, is_pinned=True)

    def _offer_all(self) -> None:
        """An engine became ready: send it everything, before it is sent any request."""
        for adapter in self._adapters.values():
            for generation in (adapter.current, adapter.candidate):
                if generation is None or generation.checked is None or generation.state is AdapterState.RETIRING:
                    continue
                self._start(self._settle(generation, self._offer(generation)))

    def _give_up(self, adapter: AdapterEntry, generation: Generation, error: BaseException) -> None:
        """A generation could not be brought in, for a reason outside of it: its adapter is as it was before."""
        if generation is adapter.candidate:
            adapter.candidate = None
        else:
            adapter.current = Generation(adapter.new, reason=str(error) if isinstance(error, GemlaneError) else "")
        self._retire(generation)

    def _publish(self, adapter: AdapterEntry, generation: Generation) -> None:
        """Let requests have this generation; the one before it retires."""
        if generation is adapter.candidate:
            earlier, adapter.current, adapter.candidate = adapter.current, generation, None
            self._retire(earlier)
        adapter.modified_at = now()
        log.info("adapter %s is served (%s)", adapter.new.name, (generation.digest or "")[:_SHOWN_DIGITS])

    def _retire(self, generation: Generation) -> None:
        self._move(generation, AdapterState.RETIRING)
        self._retiring.append(generation)
        self._start(self._free(generation))

    async def _free(self, generation: Generation) -> None:
        """Wait until no request runs under a retired generation, then let its file go."""
        if generation.digest is not None:
            heir = file_of(generation.digest, self._adapters.values())
            if heir is None:
                await self._engine.remove_adapter(generation.digest)
            elif generation.checked and heir.path != generation.checked.path:  # the engine may have opened that one
                with contextlib.suppress(GemlaneError):  # the next engine is offered it anyway
                    await self._engine.add_adapter(heir.digest, heir.path)
        self._retiring.remove(generation)
        self._report(generation, AdapterState.RETIRING, None)
        if generation.checked is not None and file_of(generation.checked.digest, self._adapters.values()) is None:
            self._on_freed(generation.checked)

    def _move(self, generation: Generation, after: AdapterState, error: GemlaneError | None = None) -> None:
        check_move(generation.state, after)
        before, generation.state = generation.state, after
        generation.error, generation.reason = error, str(error) if error else ""
        self._report(generation, before, after)

    def _report(self, generation: Generation, before: AdapterState | None, after: AdapterState | None) -> None:
        new = generation.adapter
        move = AdapterMove(new.id, new.name, generation.digest, before, after, generation.reason)
        for listener in self._listeners:
            listener(move)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
