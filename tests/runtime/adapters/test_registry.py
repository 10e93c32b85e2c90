"""Names and ids to digests; which files of a folder are adapters."""

import hashlib
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from runtime.adapters.registry import Registry, ServedAdapter, id_of, scan
from runtime.errors import EngineUnavailable, IncompatibleAdapter, InvalidAdapter, UnknownAdapter
from runtime.generation import Blend, BlendMember
from tests.runtime.double import ScriptedEngine


def adapter(name: str, digest: str = "a" * 64) -> ServedAdapter:
    """An adapter with the id of its content."""
    return ServedAdapter(id_of(digest), name, digest, Path(f"{name}.gguf"), datetime(2026, 1, 1, tzinfo=UTC))


def accept(_: Path) -> None:
    """A check that finds nothing wrong."""


def test_resolve_by_name_and_by_id() -> None:
    """Both give the content's digest."""
    registry = Registry()
    pirate = adapter("pirate")
    registry.add(pirate)
    assert registry.resolve("pirate") == registry.resolve(pirate.id) == Blend((BlendMember("a" * 64),))


@pytest.mark.parametrize("name", ["nobody", "", "PIRATE", "pirate ", "\x00", "n" * 10_000])
def test_unknown_is_an_error(name: str) -> None:
    """Nothing but the exact name is the adapter, and nothing is silently the base model."""
    registry = Registry()
    registry.add(adapter("pirate"))
    with pytest.raises(UnknownAdapter) as caught:
        registry.resolve(name)
    assert caught.value.name == name


def test_a_name_is_taken_once() -> None:
    """A second adapter of a name, or named like another's id, is refused, and the first stays."""
    registry = Registry()
    pirate = adapter("pirate")
    registry.add(pirate)
    for name in ("pirate", pirate.id):
        with pytest.raises(InvalidAdapter, match="taken"):
            registry.add(adapter(name, "b" * 64))
    assert list(registry) == [pirate]


def test_equal_content_under_two_names() -> None:
    """Both names work and share one id, which outlives neither's removal wrongly."""
    registry = Registry()
    first, second = adapter("a"), adapter("b")
    registry.add(first)
    registry.add(second)
    assert registry.resolve("a") == registry.resolve("b")
    registry.remove(second)
    assert registry.find(first.id) is first


def test_remove() -> None:
    """Neither name nor id is known any more."""
    registry = Registry()
    pirate = adapter("pirate")
    registry.add(pirate)
    registry.remove(pirate)
    assert registry.find("pirate") is registry.find(pirate.id) is None
    assert len(registry) == 0


def test_scan_names_files_by_stem_and_content(tmp_path: Path) -> None:
    """Every GGUF file is an adapter; its id follows from its bytes alone."""
    (tmp_path / "pirate.gguf").write_bytes(b"one")
    (tmp_path / "notes.txt").write_bytes(b"two")
    (found,) = scan(tmp_path, accept)
    digest = hashlib.sha256(b"one").hexdigest()
    assert (found.name, found.digest, found.id) == ("pirate", digest, id_of(digest))


def test_scan_leaves_bad_files_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that fails its check, a FIFO and a directory are told in the log and skipped; the others are served."""

    def check(path: Path) -> None:
        if path.stem == "bad":
            raise ValueError("rank 0")

    (tmp_path / "bad.gguf").write_bytes(b"x")
    (tmp_path / "good.gguf").write_bytes(b"y")
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "gone.gguf").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "fifo.gguf")
    assert [found.name for found in scan(tmp_path, check)] == ["good"]
    told = "\n".join(record.getMessage() for record in caplog.records)
    assert all(name in told for name in ("bad.gguf", "rank 0", "folder.gguf", "gone.gguf", "fifo.gguf"))


async def test_register_tells_the_engine(caplog: pytest.LogCaptureFixture) -> None:
    """The engine hears of every adapter; one that it refuses is forgotten, with its reason in the log."""
    engine, registry = ScriptedEngine(), Registry()
    registry.add(adapter("a", "a" * 64))
    registry.add(adapter("b", "b" * 64))
    engine.refusals["b" * 64] = IncompatibleAdapter("made for another model")
    await registry.register(engine)
    assert engine.adapters == {"a" * 64: Path("a.gguf")}
    assert [known.name for known in registry] == ["a"]
    assert "made for another model" in caplog.text


async def test_register_while_the_engine_starts() -> None:
    """An engine that is not ready yet costs no adapter."""
    engine, registry = ScriptedEngine(), Registry()
    registry.add(adapter("a"))
    engine.refusals["a" * 64] = EngineUnavailable("starting")
    await registry.register(engine)
    assert len(registry) == 1
