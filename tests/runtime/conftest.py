"""A running server over a scripted engine, on a free port of loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest
from aiohttp import ClientSession

from runtime.adapters.ingest import Finetunes
from runtime.adapters.registry import Adapter, Registry
from runtime.config import ServerSettings
from runtime.web.app import build_app
from runtime.web.door import open_door
from runtime.web.limits import Limits
from tests.runtime.double import ScriptedEngine

Serve = Callable[..., Awaitable[ClientSession]]

PIRATE = Adapter(
    "6f0f8f3e-4c0c-4d0e-9a55-7d3c1f6d2b11", "pirate", "a" * 64, Path("pirate.gguf"), datetime(2026, 1, 2, tzinfo=UTC)
)


@pytest.fixture
def engine() -> ScriptedEngine:
    """The double under the server of this test."""
    return ScriptedEngine()


@pytest.fixture
def registry() -> Registry:
    """One adapter, called pirate."""
    registry = Registry()
    registry.add(PIRATE)
    return registry


@pytest.fixture
async def serve(engine: ScriptedEngine, registry: Registry) -> AsyncIterator[Serve]:
    """Start the server with the given settings; gives a client session for it."""
    async with AsyncExitStack() as stack:

        async def start(
            finetunes: Finetunes | None = None, limits: Limits | None = None, **settings: object
        ) -> ClientSession:
            app = build_app(engine, registry, ServerSettings(**settings), finetunes, limits)
            door = await stack.enter_async_context(open_door(app, "127.0.0.1", 0))
            return await stack.enter_async_context(ClientSession(door.url))

        yield start


@pytest.fixture
async def client(serve: Serve) -> ClientSession:
    """A client of a server with default settings."""
    return await serve()
