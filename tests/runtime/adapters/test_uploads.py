"""Uploads, by the real converter and from the real adapters of the tiny Gemma; the engine is a double."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from runtime.adapters.converter import Converter
from runtime.adapters.record import MANIFEST_NAME, read_manifest
from runtime.adapters.registry import Registry
from runtime.adapters.uploads import CONFIG_NAME, GGUF_NAME, WEIGHTS_NAME, Finetunes, Upload, check_config
from runtime.errors import (
    AdapterError,
    ConversionDied,
    EngineUnavailable,
    IncompatibleAdapter,
    IncompleteAdapter,
    InvalidAdapter,
    StorageError,
    UnknownAdapter,
)
from runtime.generation import Blend, BlendMember
from tests.runtime.double import ScriptedEngine

PEFT = Path(__file__).parents[2] / "tiny_gemma" / "adapters"
MODEL = "@cf/google/gemma-7b-it-lora"


class House:
    """A folder of finetunes, and all that stands around it; ``restart`` opens it anew."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder = folder
        self.engine = ScriptedEngine()
        self.registry = Registry()
        self.converter = Converter(model, max_rank=32)
        self.finetunes = Finetunes(folder, self.registry, self.engine, self.converter, max_adapters=3)

    async def restart(self) -> None:
        """As after the end of the process."""
        await self.finetunes.close()
        self.engine, self.registry = ScriptedEngine(), Registry()
        self.finetunes = Finetunes(self.folder, self.registry, self.engine, self.converter, max_adapters=3)
        await self.finetunes.load()

    def upload(self, content: bytes) -> Upload:
        """A file that has just come."""
        path = self.finetunes.uploads / "incoming"
        path.write_bytes(content)
        return Upload(path, hashlib.sha256(content).hexdigest())

    async def send(self, manifest_id: str, *names: str, adapter: str = "pirate", **changes: object) -> None:
        """Send files of an adapter, ``changes`` applied to its configuration (None takes a key away)."""
        for name in names:
            content = (PEFT / adapter / name).read_bytes()
            if name == CONFIG_NAME and changes:
                config = json.loads(content) | changes
                content = json.dumps({key: value for key, value in config.items() if value is not None}).encode()
            await self.finetunes.add_file(manifest_id, name, self.upload(content))


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
async def house(tmp_path: Path, tiny_model: Path) -> AsyncIterator[House]:
    """An empty one."""
    house = House(tmp_path / "finetunes", tiny_model)
    yield house
    await house.finetunes.close()


async def test_a_finetune_is_usable_once_its_second_file_is_there(house: House) -> None:
    """By name and by id; before that it is incomplete, and nothing of the upload is left over."""
    manifest = house.finetunes.create("my pirate", MODEL)
    for name in (manifest.name, manifest.id):
        with pytest.raises(IncompleteAdapter):
            house.registry.resolve(name)
    await house.send(manifest.id, CONFIG_NAME)
    with pytest.raises(IncompleteAdapter):
        house.registry.resolve(manifest.id)
    await house.send(manifest.id, WEIGHTS_NAME)
    (digest,) = house.engine.adapters
    assert house.registry.resolve("my pirate") == house.registry.resolve(manifest.id) == Blend((BlendMember(digest),))
    assert sorted(path.name for path in (house.folder / manifest.id).iterdir()) == sorted(
        [GGUF_NAME, f"{GGUF_NAME}.json", CONFIG_NAME, MANIFEST_NAME]
    )
    assert list(house.finetunes.uploads.iterdir()) == []
    assert house.engine.adapters[digest].read_bytes()[:4] == b"GGUF"


async def test_it_survives_a_restart(house: House) -> None:
    """Whole and half-filled finetunes alike; the half-filled one can be completed then."""
    whole, half = house.finetunes.create("whole", MODEL), house.finetunes.create("half", MODEL, is_public=True)
    await house.send(whole.id, WEIGHTS_NAME, CONFIG_NAME)
    await house.send(half.id, CONFIG_NAME, adapter="tag")
    before = house.registry.resolve("whole")
    await house.restart()
    assert house.registry.resolve("whole") == before
    assert [(manifest.name, manifest.is_public) for manifest in house.finetunes] == [("whole", False), ("half", True)]
    with pytest.raises(IncompleteAdapter):
        house.registry.resolve("half")
    await house.send(half.id, WEIGHTS_NAME, adapter="tag")
    house.registry.resolve("half")


async def test_a_conversion_that_was_cut_off_is_done_at_the_next_start(house: House) -> None:
    """Both files are there, and no adapter yet: as after ``kill -9`` at the worst moment."""
    manifest = house.finetunes.create("cut", MODEL)
    await house.send(manifest.id, CONFIG_NAME)
    shutil.copy(PEFT / "pirate" / WEIGHTS_NAME, house.folder / manifest.id)
    (house.folder / manifest.id / GGUF_NAME).write_bytes(b"GGUF half")
    (house.finetunes.uploads / "rest").write_bytes(b"x")
    await house.restart()
    await asyncio.gather(*house.finetunes._tasks)
    house.registry.resolve("cut")
    assert list(house.finetunes.uploads.iterdir()) == []


async def test_the_same_file_twice_changes_nothing(house: House) -> None:
    """A client that asks again after a timeout is answered as the first time; another file is refused."""
    manifest = house.finetunes.create("twice", MODEL)
    await house.send(manifest.id, CONFIG_NAME, CONFIG_NAME, WEIGHTS_NAME)
    await house.send(manifest.id, WEIGHTS_NAME, CONFIG_NAME)
    with pytest.raises(InvalidAdapter, match="cannot be replaced"):
        await house.send(manifest.id, WEIGHTS_NAME, adapter="tag")
    assert len(house.engine.adapters) == 1


async def test_a_refused_adapter_can_be_mended(house: House) -> None:
    """What was sent last is forgotten, the finetune stays incomplete, and the right file completes it."""
    manifest = house.finetunes.create("mended", MODEL)
    await house.send(manifest.id, WEIGHTS_NAME)
    with pytest.raises(IncompatibleAdapter):
        await house.send(manifest.id, CONFIG_NAME, r=2)
    with pytest.raises(InvalidAdapter, match="bias"):
        await house.send(manifest.id, CONFIG_NAME, bias="all")
    with pytest.raises(IncompleteAdapter):
        house.registry.resolve("mended")
    assert house.engine.adapters == {}
    await house.send(manifest.id, CONFIG_NAME)
    house.registry.resolve("mended")


async def test_messages_do_not_tell_where_files_lie(house: House) -> None:
    """The converter names files; clients see no folder of the server."""
    manifest = house.finetunes.create("cut", MODEL)
    await house.send(manifest.id, CONFIG_NAME)
    with pytest.raises(InvalidAdapter) as caught:
        await house.finetunes.add_file(manifest.id, WEIGHTS_NAME, house.upload(b"\xff" * 100))
    assert WEIGHTS_NAME in str(caught.value)
    assert str(house.folder) not in str(caught.value)
    assert not list((house.folder / manifest.id).glob("*.safetensors"))


async def test_a_rank_over_the_limit_is_refused(house: House) -> None:
    """The engine's lanes have room for so much and no more."""
    house.finetunes._converter = Converter(house.converter._base, max_rank=1)
    manifest = house.finetunes.create("fat", MODEL)
    with pytest.raises(IncompatibleAdapter, match="room for 1"):
        await house.send(manifest.id, CONFIG_NAME, WEIGHTS_NAME)
    assert not list((house.folder / manifest.id).glob(f"{GGUF_NAME}*"))


async def test_what_the_engine_refuses_is_not_kept(house: House) -> None:
    """Its reason reaches the client."""

    async def refuse(_digest: str, _path: Path) -> None:
        raise IncompatibleAdapter("no room")

    house.engine.add_adapter = refuse  # type: ignore[assignment, method-assign]
    manifest = house.finetunes.create("refused", MODEL)
    with pytest.raises(IncompatibleAdapter, match="no room"):
        await house.send(manifest.id, CONFIG_NAME, WEIGHTS_NAME)
    assert read_manifest(house.folder / manifest.id).digest is None
    assert not list((house.folder / manifest.id).glob(f"{GGUF_NAME}*"))


async def test_an_engine_that_is_not_ready_costs_nothing(house: House) -> None:
    """It will be told once it is."""

    async def refuse(_digest: str, _path: Path) -> None:
        raise EngineUnavailable("starting")

    house.engine.add_adapter = refuse  # type: ignore[assignment, method-assign]
    manifest = house.finetunes.create("early", MODEL)
    await house.send(manifest.id, CONFIG_NAME, WEIGHTS_NAME)
    house.registry.resolve("early")


async def test_a_converter_that_dies(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is our fault, not the file's: the files stay, and sending one again tries again."""
    manifest = house.finetunes.create("dies", MODEL)
    with monkeypatch.context() as patch:
        patch.setattr("sys.executable", shutil.which("false"))
        with pytest.raises(ConversionDied, match="memory and disk"):
            await house.send(manifest.id, CONFIG_NAME, WEIGHTS_NAME)
    await house.send(manifest.id, WEIGHTS_NAME)
    house.registry.resolve("dies")


async def test_a_base_model_that_is_gone(house: House, tmp_path: Path) -> None:
    """The same: the file was moved while it is served."""
    house.finetunes._converter = Converter(tmp_path / "gone.gguf", max_rank=32)
    manifest = house.finetunes.create("gone", MODEL)
    with pytest.raises(ConversionDied, match="base model cannot be read"):
        await house.send(manifest.id, CONFIG_NAME, WEIGHTS_NAME)


async def test_remove(house: House) -> None:
    """Name, id, files and the engine's copy go; equal content under another name stays with the engine."""
    first, second = house.finetunes.create("a", MODEL), house.finetunes.create("b", MODEL)
    for manifest in (first, second):
        await house.send(manifest.id, CONFIG_NAME, WEIGHTS_NAME)
    await house.finetunes.remove(first.id)
    assert len(house.engine.adapters) == 1
    with pytest.raises(UnknownAdapter):
        house.registry.resolve("a")
    house.registry.resolve("b")
    await house.finetunes.remove(second.id)
    assert house.engine.adapters == {}
    assert [path.name for path in house.folder.iterdir()] == [".uploads"]
    await house.restart()
    assert list(house.finetunes) == []


@pytest.mark.parametrize(
    "name", ["", "  ", "n" * 201, "a\x00b", "a\nb", "\ud800", "cf-public-x", "6f0f8f3e-4c0c-4d0e-9a55-7d3c1f6d2b11"]
)
async def test_unusable_names(house: House, name: str) -> None:
    """They are refused before anything is written."""
    with pytest.raises(InvalidAdapter):
        house.finetunes.create(name, MODEL)
    assert [path.name for path in house.folder.iterdir()] == [".uploads"]


async def test_a_name_is_taken_once(house: House) -> None:
    """Whether it is complete or not."""
    house.finetunes.create("name", MODEL)
    with pytest.raises(InvalidAdapter, match="taken"):
        house.finetunes.create("name", MODEL)


async def test_a_finetune_that_was_refused_gives_way_to_its_successor(house: House) -> None:
    """Clients that cannot delete may try again under the same name; what still comes for the first is refused."""
    first = house.finetunes.create("mine", MODEL)
    with pytest.raises(InvalidAdapter):
        await house.send(first.id, CONFIG_NAME, model_type="llama")
    second = house.finetunes.create("mine", MODEL)
    assert [manifest.id for manifest in house.finetunes] == [second.id]
    assert [path.name for path in house.folder.iterdir() if not path.name.startswith(".")] == [second.id]
    with pytest.raises(UnknownAdapter):
        await house.send(first.id, WEIGHTS_NAME)
    await house.send(second.id, CONFIG_NAME, WEIGHTS_NAME)
    house.registry.resolve("mine")
    with pytest.raises(InvalidAdapter, match="replaced"):
        await house.send(second.id, CONFIG_NAME, r=4)
    with pytest.raises(InvalidAdapter, match="taken"):
        house.finetunes.create("mine", MODEL)


async def test_a_finetune_left_half_filled_by_an_earlier_run_gives_way(house: House) -> None:
    """Whoever began it has gone."""
    first = house.finetunes.create("mine", MODEL)
    await house.send(first.id, CONFIG_NAME)
    await house.restart()
    second = house.finetunes.create("mine", MODEL)
    assert [manifest.id for manifest in house.finetunes] == [second.id]


async def test_a_finetune_that_is_being_mended_keeps_its_name(house: House) -> None:
    """The file that was refused has come again, and is being converted."""
    manifest = house.finetunes.create("mine", MODEL)
    await house.send(manifest.id, CONFIG_NAME)
    with pytest.raises(InvalidAdapter):
        await house.finetunes.add_file(manifest.id, WEIGHTS_NAME, house.upload(b"nonsense"))
    held = HeldConverter(house.converter)
    house.finetunes._converter = held
    converting = asyncio.create_task(house.send(manifest.id, WEIGHTS_NAME))
    await held.started.wait()
    with pytest.raises(InvalidAdapter, match="taken"):
        house.finetunes.create("mine", MODEL)
    held.may_go_on.set()
    await converting
    house.registry.resolve("mine")


async def test_there_may_be_so_many(house: House) -> None:
    """All adapters count, the incomplete ones too."""
    for name in "abc":
        house.finetunes.create(name, MODEL)
    with pytest.raises(AdapterError, match="3 adapters at most"):
        house.finetunes.create("d", MODEL)


@pytest.mark.parametrize("name", ["adapter_model.bin", "../adapter_config.json", "", "x" * 1000])
async def test_only_two_files_are_accepted(house: House, name: str) -> None:
    """Their names are not a client's to choose."""
    manifest = house.finetunes.create("files", MODEL)
    with pytest.raises(InvalidAdapter, match="file_name must be"):
        await house.finetunes.add_file(manifest.id, name, house.upload(b"x"))
    assert [path.name for path in (house.folder / manifest.id).iterdir()] == [MANIFEST_NAME]


async def test_a_folder_that_cannot_be_written(house: House) -> None:
    """The name is free again, and nothing is half there."""
    shutil.rmtree(house.folder)
    house.folder.write_bytes(b"")
    with pytest.raises(StorageError):
        house.finetunes.create("lost", MODEL)
    house.folder.unlink()
    house.folder.mkdir()
    house.finetunes.create("lost", MODEL)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / MANIFEST_NAME).write_text("{"),
        lambda folder: (folder / MANIFEST_NAME).write_text("[]"),
        lambda folder: (folder / MANIFEST_NAME).unlink(),
        lambda folder: (folder / GGUF_NAME).write_bytes(b"GGUF"),
        lambda folder: (folder / GGUF_NAME).unlink(),
        lambda folder: folder.rename(folder.with_name("elsewhere")),
    ],
)
async def test_a_spoilt_folder_is_left_out(
    house: House, spoil: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    """It is told in the log; the others are served."""
    bad, good = house.finetunes.create("bad", MODEL), house.finetunes.create("good", MODEL)
    for manifest in (bad, good):
        await house.send(manifest.id, CONFIG_NAME, WEIGHTS_NAME)
    spoil(house.folder / bad.id)
    await house.restart()
    assert [manifest.name for manifest in house.finetunes] == ["good"]
    assert "is left out" in caplog.text


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
    """They are refused as they come, before the weights are sent."""
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
    """Whatever does not speak against Gemma is left to the conversion."""
    (tmp_path / "config").write_bytes(content)
    check_config(tmp_path / "config")
