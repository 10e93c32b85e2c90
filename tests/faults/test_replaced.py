"""Adapters overwritten, renamed over, replaced by upload and removed while they answer."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.end_to_end.serving import Server
from tests.faults.world import World, ask_openai, expected, faulty_server
from tests.tiny_gemma.facts import QUESTIONS
from tests.tiny_gemma.files import ADAPTERS, convert_adapter

VOICES = ("pirate", "shout")
N_CHANGES = int(os.environ.get("GEMLANE_CHANGES", "200"))
N_CLIENTS = 4


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tiny_adapters: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three adapters, and a place beside them for the weights that come and go."""
    folder = tmp_path_factory.mktemp("replaced")
    for name in ("pirate", "tag", "shout"):
        (folder / f"{name}.gguf").write_bytes((tiny_adapters / f"{name}.gguf").read_bytes())
    for name in VOICES:
        convert_adapter(ADAPTERS[name], tiny_model, folder.parent / f"{name}-f16.gguf", "f16")
    return folder


@pytest.fixture(scope="module")
def server_and_faults(
    tiny_model: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, Path]]:
    """A server of this module's own folder."""
    faults = tmp_path_factory.mktemp("faults")
    with faulty_server(tiny_model, folder, faults, "--max-queue", "100") as server:
        yield server, faults


class Changer:
    """Changes the weights under one name of the folder and one of the uploads, in every way there is."""

    def __init__(self, world: World, folder: Path) -> None:
        self._world = world
        self._path = folder / "dropped.gguf"
        self._weights = {voice: (folder.parent / f"{voice}-f16.gguf").read_bytes() for voice in VOICES}
        self.done: Counter[str] = Counter()

    async def change(self, rng: random.Random) -> None:
        """One change."""
        weights = self._weights[rng.choice(VOICES)]
        kind = rng.choice(("overwritten", "renamed", "removed", "uploaded", "deleted"))
        match kind:
            case "overwritten":
                await asyncio.to_thread(self._path.write_bytes, weights)
            case "renamed":
                await asyncio.to_thread(self._rename, weights)
            case "removed":
                self._path.unlink(missing_ok=True)
            case "uploaded":
                kind += f" {await self._request('PUT', weights)}"
            case "deleted":
                kind += f" {await self._request('DELETE')}"
        self.done[kind] += 1

    def _rename(self, weights: bytes) -> None:
        temporary = self._path.with_suffix(".part")
        temporary.write_bytes(weights)
        temporary.replace(self._path)

    async def _request(self, method: str, data: bytes | None = None) -> int:
        headers = {"Content-Type": "application/octet-stream"}
        url = f"{self._world.server.url}/adapters/swapped"
        async with self._world.session.request(method, url, data=data, headers=headers) as response:
            body = await response.read()
            if response.status >= 500 and b"engine" not in body:
                raise AssertionError(body.decode())
            return response.status


async def ask_on(world: World, rng: random.Random, ends: Counter[str], wrong: list[str]) -> None:
    """Ask the names that change, and count how it ended."""
    while True:
        name, question = rng.choice(("dropped", "swapped", "tag")), rng.choice(QUESTIONS)
        end = await ask_openai(world, question, voice=name, stream=rng.random() < 0.5)
        allowed = {expected(voice, question) for voice in (VOICES if name != "tag" else ("tag",))}
        is_cut = "ended while this request was running" in end.error and end.text and not end.is_broken
        if end.status == 200 and not end.error and end.text in allowed:
            ends["one voice"] += 1
        elif is_cut and any(answer.startswith(end.text) for answer in allowed):
            ends["cut with a typed end"] += 1
        elif end.error and not end.is_broken and name in end.error and name != "tag":
            ends["an error by name"] += 1
        else:
            wrong.append(f"{name}, {question}: {end}")


async def test_every_answer_is_one_voice(world: World, folder: Path) -> None:
    """The old weights, the new ones, or an error that names the adapter; never a mixture, and never another adapter."""
    changer, ends, wrong = Changer(world, folder), Counter[str](), list[str]()
    rng = random.Random(0)
    asking = [asyncio.create_task(ask_on(world, random.Random(n), ends, wrong)) for n in range(N_CLIENTS)]
    for number in range(N_CHANGES):
        with contextlib.suppress(aiohttp.ClientError):
            await changer.change(rng)
        if number % 500 == 250:
            os.kill(world.engine_pid, 9)
        await asyncio.sleep(rng.choice((0.0, 0.0, 0.02, 0.1)))
        assert not any(task.done() for task in asking)
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    print(dict(changer.done), dict(ends), len(wrong), Counter(line.partition("error=")[2] for line in wrong))
    assert wrong == []
    assert ends["one voice"] > N_CHANGES / 10
    (folder / "dropped.gguf").unlink(missing_ok=True)
    async with world.session.delete(f"{world.server.url}/adapters/swapped"):
        pass
