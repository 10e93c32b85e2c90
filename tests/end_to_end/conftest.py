"""One server shared by the tests that only ask. Tests that break a server start their own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.end_to_end.serving import Server, serving


@pytest.fixture(scope="session")
def server(tiny_model: Path, tiny_adapters: Path) -> Iterator[Server]:
    """The tiny Gemma in Q4_K_M with its three adapters in Q8_0."""
    with serving(tiny_model, tiny_adapters, "--parallel", "8") as running:
        yield running


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as client:
        yield client
