"""A running server over a scripted engine, on a free port of loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession

from runtime.adapters.pins import Pins
from runtime.adapters.service import AdapterService
from runtime.adapters.store import Store
from runtime.adapters.views import CheckedAdapter, NewAdapter, Source
from runtime.app import build_app
from runtime.config import ServerSettings
from runtime.web.limits import HttpLimits
from runtime.web.listener import listen
from tests.runtime.double import ScriptedEngine

Serve = Callable[..., Awaitable[ClientSession]]

PIRATE = NewAdapter(
    "6f0f8f3e-4c0c-4d0e-9a55-7d3c1f6d2b11", "pirate", Source.FOLDER, datetime(2026, 1, 2, tzinfo=UTC), "pirate.gguf"
)
PIRATE_FILE = CheckedAdapter("a" * 64, Path("pirate.gguf"), 1000, 4)


async def put(store: Store, new: NewAdapter, checked: CheckedAdapter) -> None:
    """Let ``store`` serve an adapter whose file was read and checked elsewhere."""

    async def prepare() -> CheckedAdapter:
        return checked

    store.add(new)
    await store.fill(new.id, prepare)


@pytest.fixture
def engine() -> ScriptedEngine:
    """The scripted engine of this test's server."""
    return ScriptedEngine()


@pytest.fixture
async def store(engine: ScriptedEngine) -> Store:
    """One adapter, called pirate."""
    store = Store(engine, 100, lambda _: None, Pins(2))
    await put(store, PIRATE, PIRATE_FILE)
    return store


@pytest.fixture
async def serve(engine: ScriptedEngine, store: Store) -> AsyncIterator[Serve]:
    """Start the server with the given settings; gives a client session for it."""
    async with AsyncExitStack() as stack:

        async def start(
            service: AdapterService | None = None, limits: HttpLimits | None = None, **settings: Any
        ) -> ClientSession:
            app = build_app(engine, service or AdapterService(store), ServerSettings(**settings), limits)
            listener = await stack.enter_async_context(listen(app, "127.0.0.1", 0))
            return await stack.enter_async_context(ClientSession(listener.url))

        yield start


@pytest.fixture
async def client(serve: Serve) -> ClientSession:
    """A client of a server with default settings."""
    return await serve()
