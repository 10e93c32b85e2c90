"""A server of its own for each module, with the fault switch, and the world it must be after each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.end_to_end.serving import Server
from tests.faults.world import World, faulty_server


@pytest.fixture(scope="module")
def server_and_faults(
    tiny_model: Path, tiny_adapters: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, Path]]:
    """The tiny Gemma with its three adapters, and the folder of its faults."""
    faults = tmp_path_factory.mktemp("faults")
    with faulty_server(tiny_model, tiny_adapters, faults, "--parallel", "8", "--max-queue", "100") as server:
        yield server, faults


@pytest.fixture
async def world(server_and_faults: tuple[Server, Path]) -> AsyncIterator[World]:
    """The server before and after one fault: the same answers, and nothing kept."""
    server, faults = server_and_faults
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(
        timeout=timeout, connector=aiohttp.TCPConnector(limit=0, force_close=True)
    ) as session:
        world = World(server, faults, session)
        await world.until_ready()
        await world.remember()
        yield world
        await world.check()
