"""The store over a scripted engine: names, generations, offers, refusals, and what is freed when."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from runtime.adapters.life import AdapterState
from runtime.adapters.pins import Pins
from runtime.adapters.store import Store
from runtime.adapters.views import AdapterMove, CheckedAdapter, NewAdapter, Source
from runtime.errors import (
    AdapterBudget,
    AdapterConflict,
    ConversionDied,
    EngineDied,
    EngineUnavailable,
    GenerationMismatch,
    IncompatibleAdapter,
    IncompleteAdapter,
    InvalidAdapter,
    OutOfMemory,
    StorageError,
    UnknownAdapter,
)
from runtime.generation import Blend, BlendMember
from tests.runtime.double import ScriptedEngine

A, B = "a" * 64, "b" * 64


class Parts:
    """A store, its engine, and the digests of the files that became free."""

    def __init__(self, max_adapters: int = 10, pins: Pins | None = None) -> None:
        self.engine = ScriptedEngine()
        self.freed: list[str] = []
        self.moves: list[AdapterMove] = []
        self.store = Store(self.engine, max_adapters, lambda checked: self.freed.append(checked.digest), pins)
        self.store.on_move(self.moves.append)

    def add(self, name: str, source: Source = Source.UPLOAD) -> str:
        """A new adapter that waits for its files; its id."""
        new = NewAdapter(f"id of {name}", name, source, datetime(2026, 1, 1, tzinfo=UTC))
        return self.store.add(new).id

    async def fill(self, adapter_id: str, digest: str = A, **options: object) -> None:
        """Bring a content in."""
        await self.store.fill(adapter_id, giving(digest), **options)  # type: ignore[arg-type]

    async def serve(self, name: str, digest: str = A) -> str:
        """A new adapter with a content; its id."""
        adapter_id = self.add(name)
        await self.fill(adapter_id, digest)
        return adapter_id

    def states(self, name: str) -> list[str]:
        """The states that the generations of a name went through."""
        return [move.after.value if move.after else "gone" for move in self.moves if move.name == name]

    async def rest(self) -> None:
        """Let everything that was begun come to its end."""
        while self.store._lives._tasks:
            await asyncio.gather(*self.store._lives._tasks)


def giving(digest: str) -> Callable[[], Awaitable[CheckedAdapter]]:
    """Work that gives a content at once."""

    async def prepare() -> CheckedAdapter:
        return CheckedAdapter(digest, Path(f"{digest[:1]}.gguf"), 1000, 4)

    return prepare


def failing(error: BaseException) -> Callable[[], Awaitable[CheckedAdapter]]:
    """Work that fails."""

    async def prepare() -> CheckedAdapter:
        raise error

    return prepare


def blend(digest: str) -> Blend:
    """One adapter alone."""
    return Blend((BlendMember(digest),))


@pytest.fixture
async def parts() -> Parts:
    """An empty store."""
    return Parts()


async def test_a_life_from_the_name_to_the_end(parts: Parts) -> None:
    """Every state is reported in its order, with the digest once there is one."""
    adapter_id = await parts.serve("pirate")
    assert parts.store.resolve("pirate") == parts.store.resolve(adapter_id) == blend(A)
    await parts.store.remove(adapter_id)
    await parts.rest()
    assert parts.states("pirate") == ["awaiting", "converting", "checked", "offered", "ready", "retiring", "gone"]
    assert [move.digest for move in parts.moves] == [None, None, A, A, A, A, A]
    assert (parts.engine.adapters, parts.freed) == ({}, [A])


@pytest.mark.parametrize("name", ["nobody", "", "PIRATE", "pirate ", "\x00", "n" * 10_000])
async def test_unknown_is_an_error(parts: Parts, name: str) -> None:
    """Only the exact name is the adapter; another name is an error and never the base model."""
    await parts.serve("pirate")
    with pytest.raises(UnknownAdapter) as caught:
        parts.store.resolve(name)
    assert caught.value.name == name


async def test_an_adapter_without_files_is_incomplete(parts: Parts) -> None:
    """The error for an adapter without its files names what is missing."""
    adapter_id = parts.add("pirate")
    with pytest.raises(IncompleteAdapter, match="waits for one of its two files"):
        parts.store.resolve("pirate")
    await parts.store.wait_for_files(adapter_id, "waits for the weights")
    with pytest.raises(IncompleteAdapter, match="waits for the weights"):
        parts.store.resolve("pirate")


async def test_a_name_is_taken_once(parts: Parts) -> None:
    """A second adapter of a name, or one named like another's id, is refused, and the first stays."""
    adapter_id = await parts.serve("pirate")
    for name in ("pirate", adapter_id):
        with pytest.raises(AdapterConflict, match="taken"):
            parts.add(name)
    assert [view.id for view in parts.store.snapshot()] == [adapter_id]


async def test_names_are_compared_composed(parts: Parts) -> None:
    """MacOS gives file names with accents apart from their letters; clients type them composed."""
    await parts.serve("re\u0301sume\u0301")
    assert parts.store.resolve("r\u00e9sum\u00e9") == blend(A)
    with pytest.raises(AdapterConflict):
        parts.add("r\u00e9sum\u00e9")
    await parts.store.remove("id of re\u0301sume\u0301")
    assert parts.store.is_free("r\u00e9sum\u00e9")


async def test_uses_are_counted(parts: Parts) -> None:
    """Each request counts, and the time of the last one is kept; a refusal does not count."""
    await parts.serve("pirate")
    (before,) = parts.store.snapshot()
    assert (before.n_uses, before.last_used_at) == (0, None)
    parts.store.resolve("pirate")
    parts.store.member("pirate")
    (after,) = parts.store.snapshot()
    assert after.n_uses == 2
    assert after.last_used_at is not None


async def test_a_replacement_is_served_under_the_name(parts: Parts) -> None:
    """The name leads to the new content at once; the old one leaves the engine and is freed."""
    adapter_id = await parts.serve("pirate", A)
    await parts.fill(adapter_id, B)
    assert parts.store.resolve("pirate") == blend(B)
    await parts.rest()
    assert (list(parts.engine.adapters), parts.freed) == ([B], [A])
    assert parts.states("pirate")[5:] == ["awaiting", "converting", "checked", "offered", "ready", "retiring", "gone"]


async def test_a_retired_content_waits_for_its_users(parts: Parts) -> None:
    """The file of a retired content is not freed while requests run under it."""
    adapter_id = await parts.serve("pirate", A)
    parts.engine.in_use[A] = asyncio.Event()
    await parts.fill(adapter_id, B)
    await asyncio.sleep(0)
    assert parts.freed == []
    parts.engine.in_use[A].set()
    await parts.rest()
    assert parts.freed == [A]


async def test_the_same_content_again_stays(parts: Parts) -> None:
    """A content that an equal one replaces stays with the engine and on the disk."""
    adapter_id = await parts.serve("pirate", A)
    await parts.fill(adapter_id, A)
    await parts.rest()
    assert (list(parts.engine.adapters), parts.freed) == ([A], [])


async def test_equal_content_under_two_names(parts: Parts) -> None:
    """Removing one of them leaves the content to the other."""
    first = await parts.serve("one", A)
    second = await parts.serve("two", A)
    await parts.store.remove(first)
    await parts.rest()
    assert (list(parts.engine.adapters), parts.freed) == ([A], [])
    assert parts.store.resolve("two") == blend(A)
    await parts.store.remove(second)
    await parts.rest()
    assert (parts.engine.adapters, parts.freed) == ({}, [A])


async def test_a_shared_content_is_read_from_a_file_that_is_there(parts: Parts) -> None:
    """The engine may have opened the file of the adapter that goes; it is given that of the one that stays."""
    first, second = parts.add("one"), parts.add("two")
    for adapter_id, path in ((second, Path("two.gguf")), (first, Path("one.gguf"))):

        async def prepare(path: Path = path) -> CheckedAdapter:
            return CheckedAdapter(A, path, 1000, 4)

        await parts.store.fill(adapter_id, prepare)
    assert parts.engine.adapters == {A: Path("one.gguf")}
    await parts.fill(first, B)
    await parts.rest()
    assert parts.engine.adapters[A] == Path("two.gguf")


async def test_a_content_that_comes_back_while_it_retires_is_not_freed(parts: Parts) -> None:
    """Requests still run under the old generation when the same content is added again."""
    adapter_id = await parts.serve("pirate", A)
    parts.engine.in_use[A] = asyncio.Event()
    await parts.fill(adapter_id, B)
    await asyncio.sleep(0)
    await parts.fill(adapter_id, A)
    parts.engine.in_use[A].set()
    await parts.rest()
    assert parts.freed == [B]
    assert parts.store.resolve("pirate") == blend(A)


async def test_a_refused_content_is_shown_with_its_reason(parts: Parts) -> None:
    """Requests get the reason, in its class; another file of that name replaces what was refused."""
    adapter_id = parts.add("pirate")
    with pytest.raises(InvalidAdapter):
        await parts.store.fill(adapter_id, failing(InvalidAdapter("rank 0")))
    (view,) = parts.store.snapshot()
    assert (view.state, view.reason) == (AdapterState.REFUSED, "rank 0")
    with pytest.raises(InvalidAdapter, match="pirate: rank 0"):
        parts.store.resolve("pirate")
    await parts.fill(adapter_id, A)
    assert parts.store.resolve("pirate") == blend(A)


async def test_a_refused_replacement_changes_nothing(parts: Parts) -> None:
    """What was served is served on, and the list shows what became of the other."""
    adapter_id = await parts.serve("pirate", A)
    with pytest.raises(InvalidAdapter):
        await parts.store.fill(adapter_id, failing(InvalidAdapter("rank 0")))
    (view,) = parts.store.snapshot()
    assert (view.state, view.digest) == (AdapterState.READY, A)
    assert view.replacement is not None
    assert (view.replacement.state, view.replacement.reason) == (AdapterState.REFUSED, "rank 0")
    await parts.fill(adapter_id, B)
    (view,) = parts.store.snapshot()
    assert (view.replacement, view.digest) == (None, B)


async def test_what_the_engine_refuses_is_refused_everywhere(parts: Parts) -> None:
    """An adapter that the engine refuses is refused by name, in the list and to the uploader; nothing is committed."""
    parts.engine.refusals[A] = IncompatibleAdapter("no room")
    adapter_id = parts.add("pirate")
    committed: list[CheckedAdapter] = []
    with pytest.raises(IncompatibleAdapter, match="no room"):
        await parts.fill(adapter_id, A, commit=committed.append)
    with pytest.raises(IncompatibleAdapter, match="no room"):
        parts.store.resolve("pirate")
    assert (committed, parts.store.snapshot()[0].state) == ([], AdapterState.REFUSED)


@pytest.mark.parametrize("error", [StorageError("disk full"), ConversionDied("killed")])
async def test_our_own_fault_leaves_all_as_it_was(parts: Parts, error: Exception) -> None:
    """A full disk refuses no adapter: what was served is served on, and a new one waits for its files again."""
    served, waiting = await parts.serve("served", A), parts.add("waiting")
    for adapter_id in (served, waiting):
        with pytest.raises(type(error)):
            await parts.store.fill(adapter_id, failing(error))
    await parts.rest()
    first, second = parts.store.snapshot()
    assert (first.state, first.digest, first.replacement) == (AdapterState.READY, A, None)
    assert (second.state, second.reason) == (AdapterState.AWAITING, str(error))
    await parts.fill(waiting, B)
    assert parts.store.resolve("waiting") == blend(B)


async def test_memory_that_is_refused_refuses_no_adapter(parts: Parts) -> None:
    """An adapter that the system gave no memory for says so, and may be filled again."""
    adapter_id = parts.add("waiting")
    with pytest.raises(OutOfMemory, match="not enough memory to read this adapter"):
        await parts.store.fill(adapter_id, failing(MemoryError()))
    assert parts.store.snapshot()[0].state is AdapterState.AWAITING
    await parts.fill(adapter_id, A)
    assert parts.store.resolve("waiting") == blend(A)


async def test_a_commit_that_fails_leaves_the_earlier_content(parts: Parts) -> None:
    """The engine loses the new content again, and its file is freed."""
    adapter_id = await parts.serve("pirate", A)

    def refuse(_checked: CheckedAdapter) -> None:
        raise StorageError("disk full")

    with pytest.raises(StorageError):
        await parts.fill(adapter_id, B, commit=refuse)
    await parts.rest()
    assert parts.store.resolve("pirate") == blend(A)
    assert (list(parts.engine.adapters), parts.freed) == ([A], [B])


async def test_a_fill_that_is_cancelled_leaves_the_earlier_content(parts: Parts) -> None:
    """A fill that ends in the middle, as when the server stops, leaves the earlier content served."""
    adapter_id = await parts.serve("pirate", A)
    held = asyncio.Event()

    async def prepare() -> CheckedAdapter:
        await held.wait()
        raise AssertionError

    filling = asyncio.create_task(parts.store.fill(adapter_id, prepare))
    await asyncio.sleep(0)
    assert parts.store.snapshot()[0].replacement is not None
    filling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await filling
    assert parts.store.snapshot()[0].replacement is None
    assert parts.store.resolve("pirate") == blend(A)


async def test_a_change_can_be_meant_for_one_content(parts: Parts) -> None:
    """Compare and swap: of two changes that know the same content, one is done."""
    adapter_id = await parts.serve("pirate", A)
    results = await asyncio.gather(
        parts.fill(adapter_id, B, expected_digest=A), parts.store.remove(adapter_id, A), return_exceptions=True
    )
    assert [type(result) for result in results] == [type(None), GenerationMismatch]
    assert parts.store.resolve("pirate") == blend(B)


async def test_a_change_to_a_removed_adapter_is_an_error(parts: Parts) -> None:
    """A change is an error if the adapter is removed, also if it is removed while the change waits."""
    adapter_id = await parts.serve("pirate", A)
    results = await asyncio.gather(parts.store.remove(adapter_id), parts.fill(adapter_id, B), return_exceptions=True)
    assert isinstance(results[1], UnknownAdapter)
    with pytest.raises(UnknownAdapter):
        await parts.store.remove(adapter_id)


async def test_a_removal_that_cannot_be_written_down_does_not_happen(parts: Parts) -> None:
    """An adapter whose removal cannot be written down is served as before."""
    adapter_id = await parts.serve("pirate", A)

    def refuse() -> None:
        raise StorageError("read-only")

    with pytest.raises(StorageError):
        await parts.store.remove(adapter_id, commit=refuse)
    assert parts.store.resolve("pirate") == blend(A)


async def test_a_retiring_adapter_is_listed_until_it_is_gone(parts: Parts) -> None:
    """A retiring adapter is listed while requests run under it, and its name is free already."""
    adapter_id = await parts.serve("pirate", A)
    parts.engine.in_use[A] = asyncio.Event()
    await parts.store.remove(adapter_id)
    assert [view.state for view in parts.store.snapshot()] == [AdapterState.RETIRING]
    assert list(parts.store.usable()) == []
    assert parts.store.is_free("pirate")
    parts.engine.in_use[A].set()
    await parts.rest()
    assert parts.store.snapshot() == ()


async def test_every_engine_that_becomes_ready_is_offered_everything(parts: Parts) -> None:
    """A restart after a crash and a replica that joins are the same event."""
    await parts.serve("one", A)
    await parts.serve("two", B)
    parts.engine.restart()
    assert parts.engine.offers == [A, B, A, B]
    assert {view.state for view in parts.store.snapshot()} == {AdapterState.OFFERED}
    assert parts.store.resolve("one") == blend(A)
    await parts.rest()
    assert {view.state for view in parts.store.snapshot()} == {AdapterState.READY}


@pytest.mark.parametrize("error", [EngineUnavailable("starting"), EngineDied("killed")])
async def test_an_engine_that_is_not_there_costs_nothing(parts: Parts, error: Exception) -> None:
    """The adapter is checked, requests may name it, and the next engine is offered it."""
    parts.engine.refusals[A] = error  # type: ignore[assignment]
    await parts.serve("pirate", A)
    assert parts.store.snapshot()[0].state is AdapterState.CHECKED
    assert parts.store.resolve("pirate") == blend(A)
    parts.engine.refusals.clear()
    parts.engine.restart()
    await parts.rest()
    assert parts.store.snapshot()[0].state is AdapterState.READY


async def test_a_later_engine_may_refuse_or_take(parts: Parts) -> None:
    """An adapter that one engine refuses is offered to the next, which may take it: grouped batches need no lanes."""
    await parts.serve("pirate", A)
    parts.engine.refusals[A] = IncompatibleAdapter("no room")
    parts.engine.restart()
    await parts.rest()
    assert parts.store.snapshot()[0].state is AdapterState.REFUSED
    parts.engine.refusals.clear()
    parts.engine.restart()
    await parts.rest()
    assert parts.store.snapshot()[0].state is AdapterState.READY


async def test_a_removed_adapter_is_not_offered_again(parts: Parts) -> None:
    """A new engine is not offered an adapter that is removed or being removed."""
    adapter_id = await parts.serve("pirate", A)
    parts.engine.in_use[A] = asyncio.Event()
    await parts.store.remove(adapter_id)
    parts.engine.restart()
    assert parts.engine.offers == [A]


async def test_a_pin_belongs_to_the_name(tmp_path: Path) -> None:
    """Every engine and every new content of a pinned name is pinned, also after a restart."""
    parts = Parts(pins=Pins(1, tmp_path / "pins.json"))
    adapter_id = await parts.serve("pirate", A)
    assert (await parts.store.pin(adapter_id, is_pinned=True)).is_pinned
    assert parts.engine.pins == {A}
    parts.engine.restart()
    await parts.rest()
    assert parts.engine.pins == {A}
    await parts.fill(adapter_id, B)
    assert B in parts.engine.pins
    parts = Parts(pins=Pins(1, tmp_path / "pins.json"))
    adapter_id = await parts.serve("pirate", B)
    assert parts.engine.pins == {B}
    other = await parts.serve("other", A)
    with pytest.raises(AdapterBudget, match="1 adapters at most can be pinned"):
        await parts.store.pin(other, is_pinned=True)
    assert not (await parts.store.pin(adapter_id, is_pinned=False)).is_pinned
    assert parts.engine.pins == set()
    await parts.store.pin(other, is_pinned=True)


async def test_the_number_of_uploads_is_bounded() -> None:
    """All adapters count towards the limit of uploads; those of the folder are taken in regardless."""
    parts = Parts(max_adapters=2)
    parts.add("one", Source.FOLDER)
    parts.add("two")
    with pytest.raises(AdapterBudget, match="2 adapters at most"):
        parts.add("three")
    parts.add("four", Source.FOLDER)


async def test_an_adapter_without_a_name_of_its_own(parts: Parts) -> None:
    """An adapter whose name is taken is listed as refused; the name stays the other's when it goes."""
    await parts.serve("pirate", A)
    new = NewAdapter("other id", "pirate", Source.FOLDER, datetime(2026, 1, 1, tzinfo=UTC), "pirate")
    parts.store.add_refused(new, InvalidAdapter("another adapter has its name"))
    assert parts.store.resolve("pirate") == blend(A)
    assert [(view.id, view.state) for view in parts.store.snapshot()][1] == ("other id", AdapterState.REFUSED)
    await parts.store.remove("other id")
    assert parts.store.resolve("pirate") == blend(A)
