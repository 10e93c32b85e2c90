"""The system refuses: a full disk, reads that return less than was asked for, allocations that fail.

Each fault ends in an error that says so, keeps what was served, leaves no half-written file, and is over when its cause
is: the same request then succeeds.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.end_to_end.serving import Server
from tests.faults.world import CONFIG, WEIGHTS, End, World, ask_openai, expected, faulty_server, peft
from tests.tiny_gemma.facts import QUESTIONS
from tests.tiny_gemma.files import ADAPTERS

NO_SPACE = "No space left on device"
NO_ROOM = "the server's state folder cannot be written; is there room on its disk?"
QUESTION = QUESTIONS[11]
ENDED = ("was overwritten after the server had read it", "has become shorter since it was checked")
FINETUNES = "/client/v4/accounts/local/ai/finetunes"


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The server's state folder."""
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def server_and_faults(
    tiny_model: Path, tiny_adapters: Path, state: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, Path]]:
    """A server of this module's own, whose state folder and prefix folder can be looked at."""
    faults, prefixes = tmp_path_factory.mktemp("faults"), state / "prefixes"
    with faulty_server(tiny_model, tiny_adapters, faults, "--prefix-dir", str(prefixes), state=state) as server:
        yield server, faults


@pytest.fixture
def gguf(tiny_adapters: Path) -> bytes:
    """The weights of shout, as a GGUF."""
    return (tiny_adapters / "shout.gguf").read_bytes()


def files_of(folder: Path) -> set[str]:
    """The files below a folder, but those of prefixes, which the engine writes when it rests."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.suffix != ".prefix"}


async def voice_of(world: World, name: str) -> End:
    """How the adapter of that name answers."""
    return await ask_openai(world, QUESTION, voice=name)


SHOUTS = End(200, expected("shout", QUESTION))


@pytest.mark.parametrize("is_converted", [False, True], ids=["a GGUF", "a conversion"])
async def test_an_upload_to_a_full_disk(world: World, state: Path, gguf: bytes, is_converted: bool) -> None:
    """An upload is refused with the reason and leaves nothing, and the same upload succeeds once there is room."""
    before = files_of(state)
    world.arm("fsync", "nospace")
    status, text = await world.send("PUT", "/adapters/came", data=peft() if is_converted else gguf)
    assert (status, json.loads(text)["error"]["code"]) == (507, "storage")
    assert NO_SPACE in text
    assert world.has_struck("fsync")
    assert files_of(state) == before
    assert "no adapter 'came'" in (await voice_of(world, "came")).error
    world.disarm()
    status, text = await world.send("PUT", "/adapters/came", data=peft() if is_converted else gguf)
    assert status == 201, text
    assert await voice_of(world, "came") == SHOUTS
    assert (await world.send("DELETE", "/adapters/came"))[0] == 200


async def test_a_replacement_on_a_full_disk(world: World, state: Path, tiny_adapters: Path, gguf: bytes) -> None:
    """What was served is served on, and the same replacement succeeds once there is room."""
    assert (await world.send("PUT", "/adapters/came", data=gguf))[0] == 201
    before = files_of(state)
    world.arm("fsync", "nospace")
    tag = (tiny_adapters / "tag.gguf").read_bytes()
    status, text = await world.send("PUT", "/adapters/came", data=tag)
    assert (status, NO_SPACE in text) == (507, True), text
    assert files_of(state) == before
    assert await voice_of(world, "came") == SHOUTS
    world.disarm()
    assert (await world.send("PUT", "/adapters/came", data=tag))[0] == 200
    assert await voice_of(world, "came") == End(200, expected("tag", QUESTION))
    assert (await world.send("DELETE", "/adapters/came"))[0] == 200


async def test_a_finetune_on_a_full_disk(world: World, state: Path) -> None:
    """The finetune's name and the file that came first are kept: the calls that failed succeed later."""
    before = files_of(state)
    new = {"name": "tuned", "model": "@cf/google/gemma-7b-it-lora"}
    world.arm("fsync", "nospace")
    status, text = await world.send("POST", FINETUNES, json=new)
    assert (status, NO_ROOM in text) == (500, True), text
    assert files_of(state) == before
    world.disarm()
    status, text = await world.send("POST", FINETUNES, json=new)
    assert status == 200, text
    assets = f"{FINETUNES}/{json.loads(text)['result']['id']}/finetune-assets"

    def asset(name: str) -> aiohttp.FormData:
        form = aiohttp.FormData({"file_name": name})
        form.add_field("file", (ADAPTERS["shout"] / name).read_bytes(), filename=name)
        return form

    assert (await world.send("POST", assets, data=asset(CONFIG)))[0] == 200
    before = files_of(state)
    world.arm("fsync", "nospace")
    status, text = await world.send("POST", assets, data=asset(WEIGHTS))
    assert (status, NO_ROOM in text) == (500, True), text
    assert files_of(state) == before
    world.disarm()
    status, text = await world.send("POST", assets, data=asset(WEIGHTS))
    assert status == 200, text
    assert await voice_of(world, "tuned") == SHOUTS
    assert (await world.send("DELETE", f"{FINETUNES}/tuned"))[0] == 200


async def test_a_pin_on_a_full_disk(world: World, state: Path) -> None:
    """The pin is refused, and the adapter is not pinned."""
    before = files_of(state)
    world.arm("fsync", "nospace")
    status, text = await world.send("PATCH", "/adapters/tag", json={"pinned": True})
    assert (status, NO_ROOM in text) == (507, True), text
    assert json.loads((await world.send("GET", "/adapters/tag"))[1])["pinned"] is False
    assert files_of(state) == before


async def test_a_prefix_on_a_full_disk(world: World, state: Path) -> None:
    """Answers are right, the log says why the prefix is not kept, and its folder holds no part of it."""
    prefixes = state / "prefixes"
    for path in prefixes.glob("*"):
        path.unlink()
    world.arm("fsync", "nospace")
    prompt = f"{QUESTION} " * 8
    first = await ask_openai(world, prompt, voice="tag")
    assert await ask_openai(world, prompt, voice="tag") == first
    await world.until(lambda _: world.has_struck("fsync"))
    await world.until(lambda _: any("a prefix could not be kept" in line for line in world.server.log))
    line = next(line for line in world.server.log if "a prefix could not be kept" in line)
    assert NO_SPACE in line
    assert list(prefixes.iterdir()) == []


async def test_an_engine_that_starts_on_a_full_disk(world: World) -> None:
    """The server says why the engine cannot start, without a path, and starts it by itself once there is room."""
    world.arm("fsync", "nospace")
    os.kill(world.engine_pid, 9)
    await world.until(lambda health: NO_SPACE in (health["engine"]["reason"] or ""))
    status, text = await world.send("GET", "/ready")
    assert (status, "gemlane-" in text) == (503, False), text
    world.disarm()
    await world.until_ready()


@pytest.mark.parametrize("is_converted", [False, True], ids=["a GGUF", "a conversion"])
async def test_short_reads(world: World, gguf: bytes, is_converted: bool) -> None:
    """A system that returns half of what it was asked for changes nothing: adapters come in, and their lanes fill."""
    world.arm("pread", "short")
    status, text = await world.send("PUT", "/adapters/came", data=peft() if is_converted else gguf)
    assert status == 201, text
    assert await voice_of(world, "came") == SHOUTS
    assert world.has_struck("pread")
    os.kill(world.engine_pid, 9)
    assert await voice_of(world, "came") == SHOUTS
    assert (await world.send("DELETE", "/adapters/came"))[0] == 200


@pytest.mark.parametrize("is_converted", [False, True], ids=["a GGUF", "a conversion"])
async def test_a_file_that_ends_while_it_is_checked(world: World, state: Path, gguf: bytes, is_converted: bool) -> None:
    """An upload whose file ends too early is refused with that word, and nothing of it stays."""
    before = files_of(state)
    world.arm("pread", "end")
    status, text = await world.send("PUT", "/adapters/came", data=peft() if is_converted else gguf)
    assert (status, "the file ends" in text) == (422, True), text
    assert files_of(state) == before


async def test_a_file_that_ends_while_a_lane_is_filled(world: World) -> None:
    """The request says that the file is not what it was; the next request is answered."""
    assert (await world.send("PUT", "/adapters/came", data=peft()))[0] == 201
    world.arm("pread", "end")
    end = await voice_of(world, "came")
    assert end.status == 400
    assert any(words in end.error for words in ENDED), end  # the second where the digest was checked long ago
    assert world.has_struck("pread")
    assert await ask_openai(world, QUESTION) == End(200, expected("base", QUESTION))
    world.disarm()
    assert await voice_of(world, "came") == SHOUTS
    assert (await world.send("DELETE", "/adapters/came"))[0] == 200


@pytest.mark.parametrize("is_converted", [False, True], ids=["a GGUF", "a conversion"])
async def test_no_memory_for_an_upload(world: World, state: Path, gguf: bytes, is_converted: bool) -> None:
    """An upload is refused with the reason and leaves nothing, and the same upload succeeds later."""
    before = files_of(state)
    world.arm("read", "nomemory")
    status, text = await world.send("PUT", "/adapters/came", data=peft() if is_converted else gguf)
    assert (status, json.loads(text)["error"]["code"]) == (500, "out_of_memory"), text
    assert "there is not enough memory" in text
    assert files_of(state) == before
    world.disarm()
    status, text = await world.send("PUT", "/adapters/came", data=peft() if is_converted else gguf)
    assert status == 201, text
    assert await voice_of(world, "came") == SHOUTS
    assert (await world.send("DELETE", "/adapters/came"))[0] == 200


async def test_no_memory_for_a_lane(world: World) -> None:
    """Requests under that adapter fail with the reason, others do not, and the next one under it is answered."""
    assert (await world.send("PUT", "/adapters/came", data=peft()))[0] == 201
    n_deaths = (await world.health())["engine"]["n_deaths"]
    world.arm("fill", "once nomemory")
    end = await voice_of(world, "came")
    assert (end.status, end.error) == (
        500,
        "there is not enough memory to read this adapter's weights; try again later",
    )
    assert await voice_of(world, "came") == SHOUTS
    assert (await world.health())["engine"]["n_deaths"] == n_deaths
    assert (await world.send("DELETE", "/adapters/came"))[0] == 200


async def test_no_memory_for_a_grammar(world: World) -> None:
    """The request fails with the reason, and the same request is answered later."""
    world.arm("compile", "once nomemory")
    grammar = 'root ::= "Paris" | "Rome"'
    end = await ask_openai(world, QUESTION, grammar=grammar)
    assert (end.status, end.error) == (
        500,
        "there is not enough memory to compile this grammar; try a smaller one, or later",
    )
    assert (await ask_openai(world, QUESTION, grammar=grammar)).text in ("Paris", "Rome")


@pytest.mark.parametrize("point", ["decode", "step", "load"])
async def test_no_memory_for_the_engine(world: World, point: str) -> None:
    """The engine ends with a line that says why; the next one answers every request."""
    n_deaths = (await world.health())["engine"]["n_deaths"]
    n_lines = len(world.server.log)
    world.arm(point, "once nomemory")
    if point == "load":
        os.kill(world.engine_pid, 9)
        await world.until(lambda _: world.has_struck(point))
        await world.until_ready()
    assert await ask_openai(world, QUESTION, voice="tag") == End(200, expected("tag", QUESTION))
    assert world.has_struck(point)
    assert (await world.health())["engine"]["n_deaths"] == n_deaths + (2 if point == "load" else 1)
    assert any("the system refused an allocation" in line for line in world.server.log[n_lines:])


@pytest.fixture
def small_disk(tmp_path: Path) -> tuple[str, ...]:
    """A command that mounts a file system of 4 MiB over ``tmp_path / "state"`` for the command behind it alone."""
    if not shutil.which("unshare") or os.geteuid() != 0:
        pytest.skip("a mount namespace needs Linux and its root user")
    (tmp_path / "state").mkdir()
    mount = 'set -e; mount --make-rprivate /; mount -t tmpfs -o size=4m tmpfs "$0"; exec "$@"'
    return ("unshare", "--mount", "bash", "-c", mount, str(tmp_path / "state"))


async def test_a_disk_that_is_really_full(
    tiny_model: Path, tiny_adapters: Path, tmp_path: Path, small_disk: tuple[str, ...], gguf: bytes
) -> None:
    """An upload larger than the room left is refused with the reason and leaves the room that there was."""
    with faulty_server(
        tiny_model, tiny_adapters, tmp_path / "faults", prefix=small_disk, state=tmp_path / "state"
    ) as server:
        async with aiohttp.ClientSession() as session:
            world = World(server, tmp_path / "faults", session)
            await world.until_ready()
            for size_bytes in (4 << 20, (6 << 20) + 1, 7_777_777):
                status, text = await world.send("PUT", "/adapters/came", data=io.BytesIO(gguf.ljust(size_bytes, b"\0")))
                assert (status, f"the upload cannot be written: {NO_SPACE}" in text) == (507, True), text
            assert (await world.send("PUT", "/adapters/came", data=gguf))[0] == 201
            assert await voice_of(world, "came") == SHOUTS
            await world.ask_all()
