"""The one owner of every adapter: its name and id, what it serves and what is to replace that, its pin and last use.

The folder and the uploads tell it what arrived, the engine what it takes; finetunes, the admin API, ``/v1/models``,
``/health`` and metrics are views of it. Belongs to the event loop; knows nothing of HTTP and of file formats.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Final

from runtime.adapters.entry import AdapterEntry, Generation, view_of
from runtime.adapters.life import USABLE, AdapterState
from runtime.adapters.lives import Lives
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
        self._pins = pins or Pins(0)
        self._adapters: dict[str, AdapterEntry] = {}
        self._id_of_name: dict[str, str] = {}
        self._lives = Lives(engine, self._adapters.values(), self._pins, on_freed)

    # Views

    def snapshot(self) -> tuple[AdapterView, ...]:
        """Every adapter, sorted by name; those that are retiring come last."""
        known = sorted(self._adapters.values(), key=lambda one: (one.new.name, one.new.id))
        removed = (one for one in self._lives.retiring if one.adapter.id not in self._adapters)
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
        self._lives.on_move(listener)

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
        self._lives.move(self._adapters[new.id].current, AdapterState.REFUSED, error)
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
                    self._lives.move(generation, AdapterState.REFUSED, error)
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
                    self._lives.retire(generation)
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
        await self._lives.close()

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
        adapter = self._adapters[new.id] = AdapterEntry(new, Generation(new), new.created_at)
        adapter.is_pinned = new.name in self._pins
        self._lives.begin(adapter.current)
        return view_of(adapter)

    def _begin(self, adapter: AdapterEntry) -> Generation:
        """A generation that awaits its files: the adapter's own while it serves nothing, else a candidate beside it."""
        is_serving = adapter.current.state in USABLE
        earlier = adapter.candidate if is_serving else adapter.current
        if earlier is not None and earlier.state is AdapterState.AWAITING:
            return earlier
        fresh = Generation(adapter.new)
        self._lives.begin(fresh)
        if is_serving:
            adapter.candidate = fresh
        else:
            adapter.current = fresh
        if earlier is not None:
            self._lives.retire(earlier)
        return fresh

    async def _bring_in(self, generation: Generation, prepare: Prepare) -> None:
        """Take a generation from its files to the engine."""
        self._lives.move(generation, AdapterState.CONVERTING)
        try:
            checked = await prepare()
        except MemoryError as error:
            raise OutOfMemory("there is not enough memory to read this adapter; try again later") from error
        if self._lock is not None:
            check_locked(self._lock, generation.adapter.name, checked.digest)
        for warning in checked.warnings:
            log.warning("adapter %s: %s", generation.adapter.name, warning)
        generation.checked = checked
        self._lives.move(generation, AdapterState.CHECKED)
        await self._lives.offer(generation)
        if generation.error is not None:
            raise generation.error

    def _give_up(self, adapter: AdapterEntry, generation: Generation, error: BaseException) -> None:
        """A generation could not be brought in, for a reason outside of it: its adapter is as it was before."""
        if generation is adapter.candidate:
            adapter.candidate = None
        else:
            adapter.current = Generation(adapter.new, reason=str(error) if isinstance(error, GemlaneError) else "")
        self._lives.retire(generation)

    def _publish(self, adapter: AdapterEntry, generation: Generation) -> None:
        """Let requests have this generation; the one before it retires."""
        if generation is adapter.candidate:
            earlier, adapter.current, adapter.candidate = adapter.current, generation, None
            self._lives.retire(earlier)
        adapter.modified_at = now()
        log.info("adapter %s is served (%s)", adapter.new.name, (generation.digest or "")[:_SHOWN_DIGITS])
