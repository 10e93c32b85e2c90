"""Uploads, by the real converter and from the real adapters of the tiny Gemma; the engine is a double."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from runtime.adapters.check import make_check
from runtime.adapters.converter import Converter
from runtime.adapters.disk import StateDir
from runtime.adapters.intake import Intake
from runtime.adapters.known import KnownFiles, stamp_of
from runtime.adapters.record import RECORD_NAME, read_record
from runtime.adapters.store import Store
from runtime.adapters.upload_rules import CONFIG_NAME, WEIGHTS_NAME, check_config
from runtime.adapters.uploads import ReceivedFile, Uploads
from runtime.adapters.views import NewAdapter, Source
from runtime.errors import (
    AdapterBudget,
    AdapterConflict,
    AdapterError,
    ConfigError,
    ConversionDied,
    EngineUnavailable,
    GenerationMismatch,
    IncompatibleAdapter,
    IncompleteAdapter,
    InvalidAdapter,
    StorageError,
    UnknownAdapter,
)
from runtime.generation import Blend, BlendMember
from tests.runtime.double import ScriptedEngine
from tests.tiny_gemma.files import ADAPTERS

MODEL = "@cf/google/gemma-7b-it-lora"


class Parts:
    """The parts of a server that take uploads; ``restart`` opens the same state folder again."""

    def __init__(self, root: Path, model: Path) -> None:
        self.root, self.model = root, model
        self.converter = Converter(model, max_rank=32)
        self._open()

    def _open(self) -> None:
        self.engine = ScriptedEngine()
        self.state = StateDir(self.root)
        self.known = KnownFiles(self.root / "known.json", stamp_of(self.model))
        self.store = Store(self.engine, 3, lambda checked: self.state.drop_blob(checked.digest))
        self.intake = Intake(self.state, self.known, make_check(self.model), self.converter, 0)
        self.uploads = Uploads(self.state, self.store, self.intake)

    async def close(self) -> None:
        """As at the end of the process."""
        await self.uploads.close()
        await self.store.close()
        self.known.save()
        self.state.close()

    async def restart(self) -> None:
        """As after the end of the process."""
        await self.close()
        self._open()
        await self.uploads.load()

    async def rest(self) -> None:
        """Let everything that was begun come to its end."""
        while self.store._lives._tasks:
            await asyncio.gather(*self.store._lives._tasks)

    def files(self, adapter: str) -> dict[str, Path]:
        """The two files of one of the tiny adapters, as they come in a form."""
        return {
            name: Path(shutil.copy(ADAPTERS[adapter] / name, self.state.incoming / f"{adapter}-{name}"))
            for name in (CONFIG_NAME, WEIGHTS_NAME)
        }

    def folder(self, upload_id: str) -> Path:
        """Where an upload's record lies."""
        return self.state.uploads / upload_id

    def blobs(self) -> list[str]:
        """The GGUF files that are kept."""
        return sorted(path.name for path in self.state.blobs.glob("*.gguf"))

    def receive(self, content: bytes) -> ReceivedFile:
        """A file that has just come."""
        path = self.state.incoming / "incoming"
        path.write_bytes(content)
        return ReceivedFile(path, hashlib.sha256(content).hexdigest())

    async def send(self, upload_id: str, *names: str, adapter: str = "pirate", **changes: object) -> None:
        """Send files of an adapter, ``changes`` applied to its configuration (None takes a key away)."""
        for name in names:
            content = (ADAPTERS[adapter] / name).read_bytes()
            if name == CONFIG_NAME and changes:
                config = json.loads(content) | changes
                content = json.dumps({key: value for key, value in config.items() if value is not None}).encode()
            await self.uploads.add_file(upload_id, name, self.receive(content))


class HeldConverter:
    """A converter that waits to be let go."""

    def __init__(self, converter: Converter) -> None:
        self.started, self.may_go_on = asyncio.Event(), asyncio.Event()
        self._converter = converter

    async def convert(self, folder: Path, output: Path) -> None:
        """Convert, once let go."""
        self.started.set()
        await self.may_go_on.wait()
        await self._converter.convert(folder, output)


@pytest.fixture
async def parts(tmp_path: Path, tiny_model: Path) -> AsyncIterator[Parts]:
    """An empty one."""
    parts = Parts(tmp_path / "state", tiny_model)
    yield parts
    await parts.close()


async def test_a_finetune_is_usable_once_its_second_file_is_there(parts: Parts) -> None:
    """A finetune is incomplete until its second file comes; then it answers by name and by id."""
    record = await parts.uploads.create("my pirate", MODEL)
    for name in (record.name, record.id):
        with pytest.raises(IncompleteAdapter):
            parts.store.resolve(name)
    await parts.send(record.id, CONFIG_NAME)
    with pytest.raises(IncompleteAdapter):
        parts.store.resolve(record.id)
    await parts.send(record.id, WEIGHTS_NAME)
    (digest,) = parts.engine.adapters
    assert parts.store.resolve("my pirate") == parts.store.resolve(record.id) == Blend((BlendMember(digest),))
    assert {path.name for path in parts.folder(record.id).iterdir()} == {CONFIG_NAME, RECORD_NAME}
    assert parts.blobs() == [f"{digest}.gguf"]
    assert list(parts.state.incoming.iterdir()) == []
    assert parts.engine.adapters[digest].read_bytes()[:4] == b"GGUF"


async def test_it_survives_a_restart(parts: Parts) -> None:
    """Whole and half-filled finetunes survive a restart, and a half-filled one can be completed after it."""
    whole, half = await parts.uploads.create("whole", MODEL), await parts.uploads.create("half", MODEL, is_public=True)
    await parts.send(whole.id, WEIGHTS_NAME, CONFIG_NAME)
    await parts.send(half.id, CONFIG_NAME, adapter="tag")
    before = parts.store.resolve("whole")
    await parts.restart()
    assert parts.store.resolve("whole") == before
    assert [(record.name, record.is_public) for record in parts.uploads] == [("whole", False), ("half", True)]
    with pytest.raises(IncompleteAdapter):
        parts.store.resolve("half")
    await parts.send(half.id, WEIGHTS_NAME, adapter="tag")
    parts.store.resolve("half")


async def test_a_conversion_that_was_cut_off_is_done_at_the_next_start(parts: Parts) -> None:
    """A finetune whose conversion was killed is converted at the next start, since both files are there."""
    record = await parts.uploads.create("cut", MODEL)
    await parts.send(record.id, CONFIG_NAME)
    shutil.copy(ADAPTERS["pirate"] / WEIGHTS_NAME, parts.folder(record.id))
    (parts.state.incoming / "half.gguf").write_bytes(b"GGUF half")
    (parts.state.incoming / "rest").write_bytes(b"x")
    await parts.restart()
    await asyncio.gather(*parts.uploads._tasks)
    parts.store.resolve("cut")
    assert list(parts.state.incoming.iterdir()) == []


async def test_the_same_file_twice_changes_nothing(parts: Parts) -> None:
    """A client that asks again after a timeout is answered as the first time; another file is refused."""
    record = await parts.uploads.create("twice", MODEL)
    await parts.send(record.id, CONFIG_NAME, CONFIG_NAME, WEIGHTS_NAME)
    await parts.send(record.id, WEIGHTS_NAME, CONFIG_NAME)
    with pytest.raises(InvalidAdapter, match="cannot be replaced"):
        await parts.send(record.id, WEIGHTS_NAME, adapter="tag")
    assert len(parts.engine.adapters) == 1


async def test_a_refused_adapter_can_be_mended(parts: Parts) -> None:
    """What was sent last is forgotten, the finetune stays incomplete, and the right file completes it."""
    record = await parts.uploads.create("mended", MODEL)
    await parts.send(record.id, WEIGHTS_NAME)
    with pytest.raises(IncompatibleAdapter):
        await parts.send(record.id, CONFIG_NAME, r=2)
    with pytest.raises(InvalidAdapter, match="bias"):
        await parts.send(record.id, CONFIG_NAME, bias="all")
    with pytest.raises(IncompleteAdapter):
        parts.store.resolve("mended")
    assert parts.engine.adapters == {}
    await parts.send(record.id, CONFIG_NAME)
    parts.store.resolve("mended")


async def test_messages_do_not_tell_where_files_lie(parts: Parts) -> None:
    """The converter names files; clients see no folder of the server."""
    record = await parts.uploads.create("cut", MODEL)
    await parts.send(record.id, CONFIG_NAME)
    with pytest.raises(InvalidAdapter) as caught:
        await parts.uploads.add_file(record.id, WEIGHTS_NAME, parts.receive(b"\xff" * 100))
    assert WEIGHTS_NAME in str(caught.value)
    assert str(parts.root) not in str(caught.value)
    assert not list((parts.folder(record.id)).glob("*.safetensors"))


async def test_a_rank_over_the_limit_is_refused(parts: Parts) -> None:
    """The engine's lanes have room for so much and no more."""
    parts.intake._converter = Converter(parts.model, max_rank=1)
    record = await parts.uploads.create("fat", MODEL)
    with pytest.raises(IncompatibleAdapter, match="room for 1"):
        await parts.send(record.id, CONFIG_NAME, WEIGHTS_NAME)
    assert parts.blobs() == []


async def test_what_the_engine_refuses_is_not_kept(parts: Parts) -> None:
    """An upload that the engine refuses is not kept, and the client gets the engine's reason."""
    parts.engine.refuses_with = IncompatibleAdapter("no room")
    record = await parts.uploads.create("refused", MODEL)
    with pytest.raises(IncompatibleAdapter, match="no room"):
        await parts.send(record.id, CONFIG_NAME, WEIGHTS_NAME)
    assert read_record(parts.folder(record.id)).digest is None
    await parts.rest()
    assert parts.blobs() == []


async def test_an_engine_that_is_not_ready_costs_nothing(parts: Parts) -> None:
    """The engine is offered the adapter once it is ready."""
    parts.engine.refuses_with = EngineUnavailable("starting")
    record = await parts.uploads.create("early", MODEL)
    await parts.send(record.id, CONFIG_NAME, WEIGHTS_NAME)
    parts.store.resolve("early")


async def test_a_converter_that_dies(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files stay when the converter dies, and sending one again converts again."""
    record = await parts.uploads.create("dies", MODEL)
    with monkeypatch.context() as patch:
        patch.setattr("sys.executable", shutil.which("false"))
        with pytest.raises(ConversionDied, match="memory and disk"):
            await parts.send(record.id, CONFIG_NAME, WEIGHTS_NAME)
    await parts.send(record.id, WEIGHTS_NAME)
    parts.store.resolve("dies")


async def test_a_base_model_that_is_gone(parts: Parts, tmp_path: Path) -> None:
    """The files stay when the base model's file was moved while it is served."""
    parts.intake._converter = Converter(tmp_path / "gone.gguf", max_rank=32)
    record = await parts.uploads.create("gone", MODEL)
    with pytest.raises(ConversionDied, match="base model cannot be read"):
        await parts.send(record.id, CONFIG_NAME, WEIGHTS_NAME)


async def test_remove(parts: Parts) -> None:
    """Name, id, files and the engine's copy go; equal content under another name stays with the engine."""
    first, second = await parts.uploads.create("a", MODEL), await parts.uploads.create("b", MODEL)
    for record in (first, second):
        await parts.send(record.id, CONFIG_NAME, WEIGHTS_NAME)
    await parts.uploads.remove(first.id)
    assert len(parts.engine.adapters) == 1
    with pytest.raises(UnknownAdapter):
        parts.store.resolve("a")
    parts.store.resolve("b")
    await parts.uploads.remove(second.id)
    await parts.rest()
    assert parts.engine.adapters == {}
    assert list(parts.state.uploads.iterdir()) == []
    await parts.restart()
    assert list(parts.uploads) == []


@pytest.mark.parametrize(
    "name", ["", "  ", "n" * 201, "a\x00b", "a\nb", "\ud800", "cf-public-x", "6f0f8f3e-4c0c-4d0e-9a55-7d3c1f6d2b11"]
)
async def test_unusable_names(parts: Parts, name: str) -> None:
    """Names that cannot be used are refused before anything is written."""
    with pytest.raises(InvalidAdapter):
        await parts.uploads.create(name, MODEL)
    assert list(parts.state.uploads.iterdir()) == []


async def test_a_name_is_taken_once(parts: Parts) -> None:
    """A second finetune of a name is refused, whether the first one is complete or not."""
    await parts.uploads.create("name", MODEL)
    with pytest.raises(AdapterConflict, match="taken"):
        await parts.uploads.create("name", MODEL)


async def test_a_finetune_that_was_refused_gives_way_to_its_successor(parts: Parts) -> None:
    """Clients that cannot delete may try again under the same name; what still comes for the first is refused."""
    first = await parts.uploads.create("mine", MODEL)
    with pytest.raises(InvalidAdapter):
        await parts.send(first.id, CONFIG_NAME, model_type="llama")
    second = await parts.uploads.create("mine", MODEL)
    assert [record.id for record in parts.uploads] == [second.id]
    assert [path.name for path in parts.state.uploads.iterdir()] == [second.id]
    with pytest.raises(UnknownAdapter):
        await parts.send(first.id, WEIGHTS_NAME)
    await parts.send(second.id, CONFIG_NAME, WEIGHTS_NAME)
    parts.store.resolve("mine")
    with pytest.raises(InvalidAdapter, match="replaced"):
        await parts.send(second.id, CONFIG_NAME, r=4)
    with pytest.raises(AdapterConflict, match="taken"):
        await parts.uploads.create("mine", MODEL)


async def test_a_finetune_left_half_filled_by_an_earlier_run_gives_way(parts: Parts) -> None:
    """A conversion goes on when its caller has gone."""
    first = await parts.uploads.create("mine", MODEL)
    await parts.send(first.id, CONFIG_NAME)
    await parts.restart()
    second = await parts.uploads.create("mine", MODEL)
    assert [record.id for record in parts.uploads] == [second.id]


async def test_a_finetune_that_is_being_mended_keeps_its_name(parts: Parts) -> None:
    """The file that was refused has come again, and is being converted."""
    record = await parts.uploads.create("mine", MODEL)
    await parts.send(record.id, CONFIG_NAME)
    with pytest.raises(InvalidAdapter):
        await parts.uploads.add_file(record.id, WEIGHTS_NAME, parts.receive(b"nonsense"))
    held = HeldConverter(parts.converter)
    parts.intake._converter = held
    converting = asyncio.create_task(parts.send(record.id, WEIGHTS_NAME))
    await held.started.wait()
    with pytest.raises(AdapterConflict, match="taken"):
        await parts.uploads.create("mine", MODEL)
    held.may_go_on.set()
    await converting
    parts.store.resolve("mine")


async def test_there_may_be_so_many(parts: Parts) -> None:
    """All adapters count towards the limit, the incomplete ones too."""
    for name in "abc":
        await parts.uploads.create(name, MODEL)
    with pytest.raises(AdapterError, match="3 adapters at most"):
        await parts.uploads.create("d", MODEL)


@pytest.mark.parametrize("name", ["adapter_model.bin", "../adapter_config.json", "", "x" * 1000])
async def test_only_two_files_are_accepted(parts: Parts, name: str) -> None:
    """A file with another name than the two of a finetune is refused."""
    record = await parts.uploads.create("files", MODEL)
    with pytest.raises(InvalidAdapter, match="file_name must be"):
        await parts.uploads.add_file(record.id, name, parts.receive(b"x"))
    assert [path.name for path in (parts.folder(record.id)).iterdir()] == [RECORD_NAME]


async def test_a_folder_that_cannot_be_written(parts: Parts) -> None:
    """The name is free again, and nothing is half there."""
    shutil.rmtree(parts.state.uploads)
    parts.state.uploads.write_bytes(b"")
    with pytest.raises(StorageError):
        await parts.uploads.create("lost", MODEL)
    parts.state.uploads.unlink()
    parts.state.uploads.mkdir()
    await parts.uploads.create("lost", MODEL)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / RECORD_NAME).write_text("{"),
        lambda folder: (folder / RECORD_NAME).write_text("[]"),
        lambda folder: (folder / RECORD_NAME).unlink(),
        lambda folder: folder.rename(folder.with_name("elsewhere")),
    ],
)
async def test_a_spoilt_folder_is_left_out(
    parts: Parts, spoil: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    """The log names a spoilt folder, and the other uploads are served."""
    bad, good = await parts.uploads.create("bad", MODEL), await parts.uploads.create("good", MODEL)
    for record in (bad, good):
        await parts.send(record.id, CONFIG_NAME, WEIGHTS_NAME)
    spoil(parts.folder(bad.id))
    await parts.restart()
    assert [record.name for record in parts.uploads] == ["good"]
    assert "is left out" in caplog.text


@pytest.mark.parametrize("spoil", [lambda path: path.write_bytes(b"GGUF"), lambda path: path.unlink()])
async def test_a_spoilt_conversion_is_refused_with_its_reason(parts: Parts, spoil: Callable[[Path], object]) -> None:
    """The upload is listed, requests get the reason, and the others are served."""
    bad, good = await parts.uploads.create("bad", MODEL), await parts.uploads.create("good", MODEL)
    await parts.send(bad.id, CONFIG_NAME, WEIGHTS_NAME)
    await parts.send(good.id, CONFIG_NAME, WEIGHTS_NAME, adapter="tag")
    (digest,) = (member.digest for member in parts.store.resolve("bad").members)
    spoil(parts.state.blob(digest))
    await parts.restart()
    with pytest.raises(InvalidAdapter, match="bad: "):
        parts.store.resolve("bad")
    parts.store.resolve("good")


async def test_put_adds_and_replaces(parts: Parts) -> None:
    """A whole folder at once; the earlier content goes from the engine and from the disk."""
    view, is_new = await parts.uploads.put("mine", parts.files("pirate"))
    assert is_new
    assert parts.store.resolve("mine") == parts.store.resolve(view.id) == Blend((BlendMember(str(view.digest)),))
    second, is_new = await parts.uploads.put("mine", parts.files("tag"), expected_digest=view.digest)
    await parts.rest()
    assert not is_new
    assert (second.id, second.digest != view.digest) == (view.id, True)
    assert parts.blobs() == [f"{second.digest}.gguf"]
    await parts.restart()
    assert parts.store.resolve("mine") == Blend((BlendMember(str(second.digest)),))


async def test_put_takes_a_gguf_as_it_is(parts: Parts, tiny_adapters: Path) -> None:
    """The content of a GGUF is kept unchanged."""
    place = parts.state.incoming / "pirate.gguf"
    shutil.copy(tiny_adapters / "pirate.gguf", place)
    view, _ = await parts.uploads.put("mine", {"pirate.gguf": place})
    assert parts.state.blob(str(view.digest)).read_bytes() == (tiny_adapters / "pirate.gguf").read_bytes()


async def test_a_put_that_is_refused_leaves_nothing(parts: Parts) -> None:
    """A new name is free again; a served adapter is served on, over a restart too."""
    bad = parts.state.incoming / "bad.gguf"
    bad.write_bytes(b"GGUF and no more")
    with pytest.raises(InvalidAdapter):
        await parts.uploads.put("mine", {"bad.gguf": bad})
    assert (parts.store.snapshot(), list(parts.state.uploads.iterdir())) == ((), [])
    view, _ = await parts.uploads.put("mine", parts.files("pirate"))
    bad.write_bytes(b"GGUF and no more")
    with pytest.raises(InvalidAdapter):
        await parts.uploads.put("mine", {"bad.gguf": bad})
    await parts.restart()
    assert parts.store.resolve("mine") == Blend((BlendMember(str(view.digest)),))


async def test_puts_with_conditions(parts: Parts) -> None:
    """A change meant for another content, or for a new name, changes nothing."""
    with pytest.raises(GenerationMismatch, match="no adapter 'mine'"):
        await parts.uploads.put("mine", parts.files("pirate"), expected_digest="a" * 64)
    view, _ = await parts.uploads.put("mine", parts.files("pirate"), must_be_new=True)
    for condition in ({"expected_digest": "a" * 64}, {"must_be_new": True}):
        with pytest.raises(GenerationMismatch):
            await parts.uploads.put("mine", parts.files("tag"), **condition)
    with pytest.raises(GenerationMismatch):
        await parts.uploads.remove(view.id, "a" * 64)
    assert parts.store.resolve("mine") == Blend((BlendMember(str(view.digest)),))


async def test_a_put_cannot_replace_a_file_of_the_folder(parts: Parts) -> None:
    """A put under the name of an adapter of the folder is refused."""
    new = NewAdapter("an id", "pirate", Source.FOLDER, datetime(2026, 1, 1, tzinfo=UTC), "pirate.gguf")
    parts.store.add(new)
    with pytest.raises(AdapterConflict, match="replace it there"):
        await parts.uploads.put("pirate", parts.files("pirate"))


async def test_a_conversion_is_not_done_twice(parts: Parts) -> None:
    """Equal files give the content that is there, over a restart too."""
    await parts.uploads.put("one", parts.files("pirate"))
    await parts.restart()
    parts.intake._converter = HeldConverter(parts.converter)  # would wait for ever
    async with asyncio.timeout(10):
        view, _ = await parts.uploads.put("two", parts.files("pirate"))
    assert parts.store.resolve("one") == parts.store.resolve("two")
    assert parts.blobs() == [f"{view.digest}.gguf"]


async def test_the_disk_budget(parts: Parts) -> None:
    """What would take more is refused, and the message names the setting."""
    parts.intake._max_bytes = 1
    with pytest.raises(AdapterBudget, match="--adapter-disk-mib"):
        await parts.uploads.put("mine", parts.files("pirate"))


async def test_a_full_disk_is_our_fault(parts: Parts) -> None:
    """The upload can be completed later, with the files that came."""

    class FullDisk:
        async def convert(self, _folder: Path, _output: Path) -> None:
            raise StorageError("no space left on device")

    parts.intake._converter = FullDisk()
    record = await parts.uploads.create("later", MODEL)
    with pytest.raises(StorageError, match="no space"):
        await parts.send(record.id, CONFIG_NAME, WEIGHTS_NAME)
    with pytest.raises(IncompleteAdapter, match="no space"):
        parts.store.resolve("later")
    parts.intake._converter = parts.converter
    await parts.send(record.id, CONFIG_NAME)
    parts.store.resolve("later")


async def test_a_state_folder_has_one_server(parts: Parts) -> None:
    """The error of a second server names the process that has the folder, and what to do."""
    with pytest.raises(ConfigError, match=f"process {os.getpid()}.*--state-dir"):
        StateDir(parts.root)
    await parts.close()
    parts._open()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "must be a JSON object"),
        (b'{"model_type":"llama"}', "model_type 'llama'"),
        (b'{"model_type":["gemma"]}', "model_type"),
        (b'{"base_model_name_or_path":"meta-llama/Llama-2-7b"}', "is for 'meta-llama"),
        (b" " * (1 << 20) + b" ", "1048576 bytes"),
    ],
)
def test_unusable_configurations(tmp_path: Path, content: bytes, text: str) -> None:
    """Unusable configurations are refused as they come, before the weights are sent."""
    (tmp_path / "config").write_bytes(content)
    with pytest.raises(InvalidAdapter, match=text):
        check_config(tmp_path / "config")


@pytest.mark.parametrize(
    "content",
    [
        b"{}",
        b'{"model_type":"gemma","base_model_name_or_path":"./llama"}',
        b'{"base_model_name_or_path":"llama-gemma-mix"}',
        b'{"base_model_name_or_path":"base"}',
    ],
)
def test_usable_configurations(tmp_path: Path, content: bytes) -> None:
    """A configuration that does not contradict Gemma is left to the conversion."""
    (tmp_path / "config").write_bytes(content)
    check_config(tmp_path / "config")
