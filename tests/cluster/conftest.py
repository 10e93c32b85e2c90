"""Fixtures of the tests on Ray; without the ``cluster`` extra nothing of this folder is collected."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import AsyncIterator, Iterator
from importlib.util import find_spec
from pathlib import Path

import aiohttp
import pytest

from tests.end_to_end.serving import Server, serving

REPLICAS = ("--engine", "ray", "--replicas", "2", "--parallel", "4", "--lanes", "4")

if find_spec("ray"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Ray does with its own libraries is not ours to mend
        importlib.import_module("ray.serve")
else:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def replicas(tiny_model: Path, tiny_adapters: Path) -> Iterator[Server]:
    """Two replicas of the tiny Gemma on a Ray of their own, for tests that break nothing."""
    with serving(tiny_model, tiny_adapters, *REPLICAS) as running:
        yield running


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as client:
        yield client
