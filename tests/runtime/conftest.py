"""A running server over a scripted engine, on a free port of loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession

from runtime.adapters.registry import Registry, ServedAdapter
from runtime.adapters.uploads import Finetunes
from runtime.app import build_app
from runtime.config import ServerSettings
from runtime.web.limits import HttpLimits
from runtime.web.listener import listen
from tests.runtime.double import ScriptedEngine

Serve = Callable[..., Awaitable[ClientSession]]

PIRATE = ServedAdapter(
    "6f0f8f3e-4c0c-4d0e-9a55-7d3c1f6d2b11", "pirate", "a" * 64, Path("pirate.gguf"), datetime(2026, 1, 2, tzinfo=UTC)
)


@pytest.fixture
def engine() -> ScriptedEngine:
    """The scripted engine of this test's server."""
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
            finetunes: Finetunes | None = None, limits: HttpLimits | None = None, **settings: Any
        ) -> ClientSession:
            app = build_app(engine, registry, ServerSettings(**settings), finetunes, limits)
            listener = await stack.enter_async_context(listen(app, "127.0.0.1", 0))
            return await stack.enter_async_context(ClientSession(listener.url))

        yield start


@pytest.fixture
async def client(serve: Serve) -> ClientSession:
    """A client of a server with default settings."""
    return await serve()
