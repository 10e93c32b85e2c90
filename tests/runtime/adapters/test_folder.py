"""The adapters folder, with real files and the real converter; the engine is a double."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from convert.gguf.header import read_header
from convert.rules.adapter import AdapterSummary
from runtime.adapters.check import make_check
from runtime.adapters.converter import Converter
from runtime.adapters.disk import StateDir
from runtime.adapters.folder import AdapterFolder, candidates, id_of
from runtime.adapters.intake import Intake
from runtime.adapters.known import KnownFiles, stamp_of
from runtime.adapters.life import AdapterState
from runtime.adapters.store import Store
from runtime.adapters.views import AdapterView
from runtime.admin.wire import render_adapter
from runtime.errors import IncompleteAdapter, InvalidAdapter, UnknownAdapter
from tests.runtime.double import ScriptedEngine
from tests.tiny_gemma.files import ADAPTERS

STILL_S = 0.05


class Parts:
    """The parts of a server that watch a folder; ``restart`` begins again with what is on disk."""

    def __init__(self, root: Path, model: Path) -> None:
        self.root, self.model = root, model
        self.place = root / "adapters"
        self.place.mkdir()
        self.open()

    def open(self) -> None:
        """As at the start of a server."""
        self.state = StateDir(self.root / "state")
        self.known = KnownFiles(self.state.root / "known.json", stamp_of(self.model))
        self.n_read: list[Path] = []
        check = make_check(self.model)

        def counting(path: Path) -> AdapterSummary:
            self.n_read.append(path)
            return check(path)

        self.engine = ScriptedEngine()
        self.store = Store(self.engine, 10, lambda checked: self.state.drop_blob(checked.digest))
        self.intake = Intake(self.state, self.known, counting, Converter(self.model, 32), 0)
        self.folder = AdapterFolder(self.place, self.store, self.intake, still_s=STILL_S)

    async def close(self) -> None:
        """As at the end of a server."""
        await self.folder.close()
        await self.store.close()
        self.known.save()
        self.state.close()

    async def restart(self) -> None:
        """As after the end of the process."""
        await self.close()
        self.open()
        await self.look()

    async def look(self) -> None:
        """Look until nothing changes any more."""
        await self.folder._look_until_still()
        await self.folder.settled()
        await self.folder._look_until_still()
        await self.folder.settled()
        while self.store._lives._tasks:
            await asyncio.gather(*self.store._lives._tasks)

    def view(self, location: str) -> AdapterView:
        """What became of a file of the folder."""
        view = self.store.find(id_of(location))
        assert view is not None, location
        return view

    def digest(self, name: str) -> str:
        """The content that requests by a name get."""
        return self.store.resolve(name).members[0].digest


@pytest.fixture
async def parts(tmp_path: Path, tiny_model: Path) -> AsyncIterator[Parts]:
    """An empty folder."""
    parts = Parts(tmp_path, tiny_model)
    yield parts
    await parts.close()


def mlx_folder(source: Path, target: Path) -> None:
    """A folder as mlx-lm leaves it, of which the configuration alone matters here."""
    target.mkdir()
    (target / "adapter_config.json").write_text(json.dumps({"fine_tune_type": "lora", "lora_parameters": {}}))
    shutil.copy(source / "adapter_model.safetensors", target / "adapters.safetensors")


async def test_every_kind_is_served_as_it_was_left(parts: Parts, tiny_adapters: Path) -> None:
    """A GGUF file where it lies, a PEFT folder from a conversion in the state folder; the folder itself stays as is."""
    shutil.copy(tiny_adapters / "pirate.gguf", parts.place)
    shutil.copytree(ADAPTERS["tag"], parts.place / "tag")
    before = sorted(path.relative_to(parts.place) for path in parts.place.rglob("*"))
    await parts.look()
    paths = {path.stem if path.parent == parts.place else "tag": path for path in parts.engine.adapters.values()}
    assert paths["pirate"] == parts.place / "pirate.gguf"
    assert paths["tag"] == parts.state.blob(parts.digest("tag"))
    assert sorted(path.relative_to(parts.place) for path in parts.place.rglob("*")) == before


async def test_a_file_that_is_dropped_in_is_served(parts: Parts, tiny_adapters: Path) -> None:
    """The watch notices a file that is dropped in, without any request."""
    await parts.folder.start()
    watching = asyncio.create_task(parts.folder.watch())
    await asyncio.sleep(0.1)  # the watch begins
    shutil.copy(tiny_adapters / "pirate.gguf", parts.place)
    async with asyncio.timeout(20):
        while parts.store.find("pirate") is None or not parts.engine.adapters:  # noqa: ASYNC110 - files have no event
            await asyncio.sleep(0.01)
    watching.cancel()


async def test_a_half_copied_file_is_not_touched(parts: Parts, tiny_adapters: Path) -> None:
    """A file counts once it has stopped growing; before that not even its header is read."""
    content = (tiny_adapters / "pirate.gguf").read_bytes()
    place = parts.place / "pirate.gguf"
    for end in range(0, len(content), len(content) // 5):
        place.write_bytes(content[:end])
        await parts.folder.look()
        assert parts.n_read == []
    place.write_bytes(content)
    await parts.look()
    assert parts.view("pirate.gguf").state is AdapterState.READY


async def test_a_copy_that_stops_for_a_while_is_taken_when_it_is_whole(parts: Parts, tiny_adapters: Path) -> None:
    """Cut off, it is refused with the byte at which it ends; the rest makes it a new content."""
    content = (tiny_adapters / "pirate.gguf").read_bytes()
    (parts.place / "pirate.gguf").write_bytes(content[:-100])
    await parts.look()
    view = parts.view("pirate.gguf")
    assert view.state is AdapterState.REFUSED
    assert "pirate.gguf" in view.reason
    assert str(parts.place) not in view.reason
    (parts.place / "pirate.gguf").write_bytes(content)
    await parts.look()
    assert parts.view("pirate.gguf").state is AdapterState.READY


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
async def test_a_folder_waits_for_its_second_file(parts: Parts, missing: str) -> None:
    """The list and the error of a request name the file that is missing."""
    folder = shutil.copytree(ADAPTERS["tag"], parts.place / "tag")
    (folder / missing).unlink()
    await parts.look()
    view = parts.view("tag")
    assert view.state is AdapterState.AWAITING
    assert missing in view.reason
    with pytest.raises(IncompleteAdapter, match=missing):
        parts.store.resolve("tag")
    shutil.copy(ADAPTERS["tag"] / missing, folder)
    await parts.look()
    assert parts.view("tag").state is AdapterState.READY


async def test_a_changed_file_is_a_new_generation(parts: Parts, tiny_adapters: Path) -> None:
    """The name and the id stay, the content follows the file, and the engine loses the earlier one."""
    shutil.copy(tiny_adapters / "pirate.gguf", parts.place / "voice.gguf")
    await parts.look()
    before = parts.view("voice.gguf")
    shutil.copy(tiny_adapters / "shout.gguf", parts.place / "new.part")
    (parts.place / "new.part").replace(parts.place / "voice.gguf")
    await parts.look()
    after = parts.view("voice.gguf")
    assert (after.id, after.digest != before.digest) == (before.id, True)
    assert list(parts.engine.adapters) == [after.digest]


async def test_a_folder_that_is_trained_again_is_a_new_generation(parts: Parts) -> None:
    """A folder that is trained again is converted again, and the earlier conversion is deleted."""
    folder = shutil.copytree(ADAPTERS["tag"], parts.place / "tag")
    await parts.look()
    before = parts.digest("tag")
    shutil.copy(ADAPTERS["pirate"] / "adapter_model.safetensors", folder)
    shutil.copy(ADAPTERS["pirate"] / "adapter_config.json", folder)
    await parts.look()
    assert parts.digest("tag") != before
    assert [path.stem for path in parts.state.blobs.glob("*.gguf")] == [parts.digest("tag")]


async def test_a_changed_file_that_is_bad_leaves_the_earlier_content(parts: Parts) -> None:
    """A conversion is ours, so it outlives what it was made of; the list says what is wrong."""
    folder = shutil.copytree(ADAPTERS["tag"], parts.place / "tag")
    await parts.look()
    before = parts.digest("tag")
    (folder / "adapter_model.safetensors").write_bytes(b"nonsense")
    await parts.look()
    view = parts.view("tag")
    assert (view.state, view.digest) == (AdapterState.READY, before)
    assert view.replacement is not None
    assert view.replacement.state is AdapterState.REFUSED


async def test_a_touched_file_is_the_same_content(parts: Parts, tiny_adapters: Path) -> None:
    """A file with a new date and its old digest stays with the engine."""
    shutil.copy(tiny_adapters / "pirate.gguf", parts.place)
    await parts.look()
    before = parts.digest("pirate")
    os.utime(parts.place / "pirate.gguf")
    await parts.look()
    assert parts.digest("pirate") == before
    assert list(parts.engine.adapters) == [before]


async def test_a_removed_file_retires(parts: Parts, tiny_adapters: Path) -> None:
    """Requests that name it get an error, never the base model."""
    shutil.copy(tiny_adapters / "pirate.gguf", parts.place)
    shutil.copytree(ADAPTERS["tag"], parts.place / "tag")
    await parts.look()
    (parts.place / "pirate.gguf").unlink()
    shutil.rmtree(parts.place / "tag")
    await parts.look()
    for name in ("pirate", "tag"):
        with pytest.raises(UnknownAdapter):
            parts.store.resolve(name)
    assert parts.engine.adapters == {}
    assert list(parts.state.blobs.iterdir()) == []


async def test_a_file_that_is_gone_for_a_moment_does_not_retire(parts: Parts, tiny_adapters: Path) -> None:
    """Removed and copied again between two looks, it is replaced: requests find the name throughout."""
    place = parts.place / "voice.gguf"
    shutil.copy(tiny_adapters / "pirate.gguf", place)
    await parts.look()
    place.unlink()
    await parts.folder.look()
    parts.store.resolve("voice")
    shutil.copy(tiny_adapters / "shout.gguf", place)
    await parts.look()
    assert parts.view("voice.gguf").state is AdapterState.READY
    assert [move.state for move in parts.store.snapshot()] == [AdapterState.READY]


async def test_a_folder_that_cannot_be_read_changes_nothing(
    parts: Parts, tiny_adapters: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A network drive that is away retires no adapter; this is logged once."""
    shutil.copy(tiny_adapters / "pirate.gguf", parts.place)
    await parts.look()
    parts.place.rename(parts.root / "away")
    for _ in range(3):
        await parts.look()
    parts.store.resolve("pirate")
    assert caplog.text.count("adapters stay as they are") == 1
    (parts.root / "away").rename(parts.place)
    await parts.look()
    parts.store.resolve("pirate")


async def test_two_of_one_name(parts: Parts, tiny_adapters: Path) -> None:
    """The first file by name has the adapter name; the other is refused, and has the name once the first is gone."""
    shutil.copytree(ADAPTERS["tag"], parts.place / "voice")
    await parts.look()
    shutil.copy(tiny_adapters / "shout.gguf", parts.place / "voice.gguf")
    await parts.look()
    assert parts.view("voice").state is AdapterState.READY
    assert (parts.view("voice.gguf").state, parts.view("voice.gguf").reason) == (
        AdapterState.REFUSED,
        "another adapter has its name",
    )
    shutil.rmtree(parts.place / "voice")
    await parts.look()
    await parts.look()
    assert parts.view("voice.gguf").state is AdapterState.READY
    parts.store.resolve("voice")


async def test_a_restart_reads_no_weights_again(parts: Parts, tiny_adapters: Path) -> None:
    """A restart reads no weights of GGUF files and conversions; it reads a file that changed meanwhile."""
    shutil.copy(tiny_adapters / "pirate.gguf", parts.place)
    shutil.copytree(ADAPTERS["tag"], parts.place / "tag")
    (parts.place / "bad.gguf").write_bytes(b"GGUF and no more")
    await parts.look()
    assert len(parts.n_read) == 3
    await parts.restart()
    assert parts.n_read == []
    assert {view.name: view.state.value for view in parts.store.snapshot()} == {
        "bad": "refused",
        "pirate": "ready",
        "tag": "ready",
    }
    shutil.copy(tiny_adapters / "shout.gguf", parts.place / "pirate.gguf")
    await parts.restart()
    assert parts.n_read == [parts.place / "pirate.gguf"]


async def test_another_base_model_checks_everything_again(parts: Parts, tiny_adapters: Path, tmp_path: Path) -> None:
    """Adapters are checked again for another base model, since they may not fit it."""
    shutil.copy(tiny_adapters / "pirate.gguf", parts.place)
    await parts.look()
    parts.model = Path(shutil.copy(parts.model, tmp_path / "other.gguf"))
    await parts.restart()
    assert parts.n_read == [parts.place / "pirate.gguf"]


async def test_bad_files_are_refused_with_their_reasons(parts: Parts, tiny_adapters: Path) -> None:
    """Good files are served beside bad ones, and a request that names a bad one gets the reason."""
    (parts.place / "empty.gguf").write_bytes(b"")
    (parts.place / "folder.gguf").mkdir()
    os.mkfifo(parts.place / "fifo.gguf")
    mlx_folder(ADAPTERS["tag"], parts.place / "mlx")
    shutil.copy(tiny_adapters / "pirate.gguf", parts.place)
    await parts.look()
    assert {view.name: view.state.value for view in parts.store.snapshot()} == {
        "empty": "refused",
        "fifo": "refused",
        "folder": "refused",
        "mlx": "refused",
        "pirate": "ready",
    }
    with pytest.raises(InvalidAdapter, match="fifo: not a regular file"):
        parts.store.resolve("fifo")


async def test_a_folder_with_nothing_usable_says_why(parts: Parts, caplog: pytest.LogCaptureFixture) -> None:
    """The log gives the reason for each file of a folder that has no usable adapter."""
    (parts.place / "notes.txt").write_text("x")
    (parts.place / "pirate.gguf.part").write_text("x")
    (parts.place / ".DS_Store").write_text("x")
    (parts.place / "pirate.gguf.json").write_text("{}")
    (parts.place / "checkpoints").mkdir()
    (parts.place / "gone.gguf").symlink_to(parts.place / "nowhere")
    with caplog.at_level(logging.WARNING):
        await parts.folder.start()
    for name, reason in [
        ("notes.txt", "neither a .gguf file nor a folder"),
        ("pirate.gguf.part", "not finished"),
        ("checkpoints", "a folder without adapter_config.json"),
        ("gone.gguf", "cannot be read: No such file"),
    ]:
        assert f"{name} in the adapters folder is left out: {reason}" in caplog.text
    assert ".DS_Store" not in caplog.text
    assert "pirate.gguf.json" not in caplog.text  # the converter's own record
    assert f"{parts.place} holds no adapter\n" in caplog.text
    n_logged = len(caplog.records)
    await parts.look()
    assert len(caplog.records) == n_logged
    assert parts.store.snapshot() == ()


async def test_an_empty_folder_is_said_to_be_empty(parts: Parts, caplog: pytest.LogCaptureFixture) -> None:
    """An empty folder is not an error, since adapters may still come."""
    await parts.folder.start()
    assert "holds no adapter: it is empty" in caplog.text


async def test_a_file_that_changes_while_it_is_read_is_read_again(
    parts: Parts, tiny_adapters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read of a file that changed meanwhile is dropped, since it belongs to neither content."""
    place = parts.place / "voice.gguf"
    shutil.copy(tiny_adapters / "pirate.gguf", place)
    read = parts.intake._check

    def change(path: Path) -> AdapterSummary:
        summary = read(path)
        monkeypatch.setattr(parts.intake, "_check", read)
        shutil.copy(tiny_adapters / "shout.gguf", path)
        return summary

    monkeypatch.setattr(parts.intake, "_check", change)
    await parts.look()
    await parts.look()
    shutil.copy(tiny_adapters / "shout.gguf", parts.place / "shout.gguf")
    await parts.look()
    assert parts.digest("voice") == parts.digest("shout")


@pytest.mark.parametrize("spoil", [lambda path: path.write_text("{"), lambda path: path.write_text('{"format": 2}')])
async def test_what_is_known_can_be_lost(
    parts: Parts, tiny_adapters: Path, spoil: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    """The list of known files is a cache: without it every file is read once more."""
    shutil.copy(tiny_adapters / "pirate.gguf", parts.place)
    await parts.look()
    await parts.close()
    spoil(parts.root / "state" / "known.json")
    parts.open()
    await parts.look()
    assert len(parts.n_read) == 1
    assert "read again" in caplog.text


def test_candidates_reads_no_file(tmp_path: Path) -> None:
    """Files that may not be read are candidates like others: a look at a folder costs no more than its names."""
    place = tmp_path / "secret.gguf"
    place.write_bytes(b"x")
    place.chmod(0)
    found, others = candidates(tmp_path)
    assert (list(found), others) == (["secret.gguf"], {})


async def test_what_may_make_an_adapter_useless_is_shown(
    parts: Parts, tiny_adapters: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An adapter that changes nothing is served, logged, and listed with its warning, also after a restart."""
    content = bytearray((tiny_adapters / "pirate.gguf").read_bytes())
    for tensor in read_header(tiny_adapters / "pirate.gguf").tensors.values():
        content[tensor.offset : tensor.offset + tensor.size_bytes] = bytes(tensor.size_bytes)
    (parts.place / "idle.gguf").write_bytes(content)
    await parts.look()
    await parts.close()
    parts.open()
    await parts.look()
    assert parts.n_read == []
    view = parts.view("idle.gguf")
    assert view.state is AdapterState.READY
    assert "it changes nothing" in render_adapter(view, frozenset())["warnings"][0]
    assert "adapter idle: it changes nothing" in caplog.text


async def test_what_people_leave_in_the_folder_is_named(
    parts: Parts, tiny_adapters: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """NAME.GGUF is served; a folder around GGUF files, a training run and pickles are left out with what they are."""
    shutil.copy(tiny_adapters / "pirate.gguf", parts.place / "PIRATE.GGUF")
    (parts.place / "org").mkdir()
    shutil.copy(tiny_adapters / "tag.gguf", parts.place / "org" / "tag.gguf")
    (parts.place / "run" / "checkpoint-300").mkdir(parents=True)
    pickled = shutil.copytree(ADAPTERS["tag"], parts.place / "pickled")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    await parts.look()
    assert parts.view("PIRATE.GGUF").state is AdapterState.READY
    assert (
        "org in the adapters folder is left out: a folder without adapter_config.json: a folder of GGUF" in caplog.text
    )
    assert "run in the adapters folder is left out" in caplog.text
    assert "give one of its checkpoints: checkpoint-300" in caplog.text
    assert "only there as adapter_model.bin, a pickle" in parts.view("pickled").reason
