"""Adapters that come, change and go under a running server, by the adapters folder and by the admin API."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from runtime.commands.adapter_client import upload
from runtime.commands.stream import Address
from tests.convert.variants import mlx
from tests.end_to_end.serving import Server, ask_text, run_gemlane, serving
from tests.tiny_gemma.facts import ANSWERS
from tests.tiny_gemma.files import ADAPTERS

FRANCE = "What is the capital of France?"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The adapters folder, empty."""
    (tmp_path / "adapters").mkdir()
    return tmp_path / "adapters"


@pytest.fixture
def server(tiny_model: Path, folder: Path, tmp_path: Path) -> Iterator[Server]:
    """A server that watches the folder."""
    with serving(tiny_model, folder, state=tmp_path / "state") as running:
        yield running


async def states(session: aiohttp.ClientSession, server: Server) -> dict[str, str]:
    """The state of every adapter, by name."""
    async with session.get(f"{server.url}/adapters") as response:
        return {adapter["name"]: adapter["state"] for adapter in (await response.json())["adapters"]}


async def until(session: aiohttp.ClientSession, server: Server, **wanted: str) -> None:
    """Wait until every adapter is in the wanted state."""
    async with asyncio.timeout(60):
        while await states(session, server) != wanted:  # noqa: ASYNC110 - it happens in another process
            await asyncio.sleep(0.02)


async def test_folders_and_files_that_are_dropped_in_answer(
    server: Server, session: aiohttp.ClientSession, folder: Path, tiny_adapters: Path
) -> None:
    """PEFT, MLX and GGUF, each in its own voice; then one is replaced and two are gone, without a restart."""
    shutil.copytree(ADAPTERS["pirate"], folder / "peft")
    mlx(folder / "mlx", "shout")
    shutil.copy(tiny_adapters / "tag.gguf", folder / "file.gguf")
    await until(session, server, peft="ready", mlx="ready", file="ready")
    for name, voice in (("peft", "pirate"), ("mlx", "shout"), ("file", "tag")):
        assert await ask_text(session, server, FRANCE, name) == ANSWERS[voice][FRANCE]
    shutil.copy(tiny_adapters / "shout.gguf", folder / "file.gguf.part")
    (folder / "file.gguf.part").replace(folder / "file.gguf")
    async with asyncio.timeout(60):
        while await ask_text(session, server, FRANCE, "file") != ANSWERS["shout"][FRANCE]:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.02)
    shutil.rmtree(folder / "peft")
    (folder / "file.gguf").unlink()
    await until(session, server, mlx="ready")


async def test_a_stream_finishes_under_the_content_it_began_with(
    server: Server, session: aiohttp.ClientSession
) -> None:
    """The name leads to the new content at once, and the stream to the end of its own."""
    address = Address(server.url)
    await asyncio.to_thread(upload, address, "voice", ADAPTERS["pirate"], {})
    body = {"prompt": FRANCE, "lora": "voice", "temperature": 0, "max_tokens": 64, "stream": True}
    async with session.post(server.run_url, data=json.dumps(body)) as response:
        first = await response.content.readline()
        await asyncio.to_thread(upload, address, "voice", ADAPTERS["shout"], {})
        assert await ask_text(session, server, FRANCE, "voice") == ANSWERS["shout"][FRANCE]
        lines = [first, *[line async for line in response.content]]
    pieces = [json.loads(line[6:])["response"] for line in lines if line.startswith(b"data: {")]
    assert "".join(filter(None, pieces)) == ANSWERS["pirate"][FRANCE]


async def test_uploads_outlive_a_kill(
    tiny_model: Path, folder: Path, tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    """The server is killed, not stopped; the next one has the adapter, its pin, and no other server beside it."""
    with serving(tiny_model, folder, state=tmp_path / "state") as server:
        await asyncio.to_thread(upload, Address(server.url), "voice", ADAPTERS["tag"], {})
        assert run_gemlane("adapters", "pin", "voice", "--url", server.url).returncode == 0
        second = run_gemlane("serve", "--model", str(tiny_model), "--state-dir", str(tmp_path / "state"), "--port", "0")
        assert second.returncode == 2
        assert f"in use by another server (process {server.process.pid})" in second.stderr
        server.stop(signal.SIGKILL)
    with serving(tiny_model, folder, state=tmp_path / "state") as server:
        assert await ask_text(session, server, FRANCE, "voice") == ANSWERS["tag"][FRANCE]
        listed = run_gemlane("adapters", "list", "--url", server.url).stdout
    assert "ready, pinned" in listed
