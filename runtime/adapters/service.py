"""Composes state folder, store, uploads and the watched folder, from the start to the end of a server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from runtime.adapters.check import make_check
from runtime.adapters.converter import Converter
from runtime.adapters.disk import StateDir, default_state_dir
from runtime.adapters.folder import AdapterFolder
from runtime.adapters.intake import Intake
from runtime.adapters.known import KnownFiles, stamp_of
from runtime.adapters.lock import read_lock
from runtime.adapters.pins import Pins
from runtime.adapters.store import Store
from runtime.adapters.uploads import Uploads
from runtime.adapters.views import CheckedAdapter
from runtime.config import Settings
from runtime.engines.protocol import Engine
from runtime.errors import ConfigError, StorageError

_SAVE_INTERVAL_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class AdapterService:
    """What the rest of the server works with; ``uploads`` and ``folder`` are None where the settings name no place."""

    store: Store
    uploads: Uploads | None = None
    folder: AdapterFolder | None = None


@contextlib.asynccontextmanager
async def adapters_of(settings: Settings, engine: Engine) -> AsyncIterator[AdapterService]:
    """Keep adapters for ``engine`` while the context lasts; uploads of earlier runs are there at its start.

    Raises:
        ConfigError: the state folder cannot be written, or another server uses it.
        ModelLoadError: the base model's header cannot be read.
    """
    state = _open_state(settings)
    if state is None:
        store = Store(engine, settings.server.max_adapters, lambda _: None)
        yield AdapterService(store)
        await store.close()
        return
    try:
        model = Path(settings.engine.model)
        check, converter = make_check(model), Converter(model, settings.engine.max_lora_rank)
        known = KnownFiles(state.root / "known.json", stamp_of(model))
        pins = Pins(settings.engine.lanes - 1, state.root / "pins.json")
        max_adapters, lock = settings.server.max_adapters, _lock(settings)
        store = Store(engine, max_adapters, lambda checked: _drop(state, checked), pins, lock)
        intake = Intake(state, known, check, converter, settings.server.adapter_disk_mib << 20)
        uploads = Uploads(state, store, intake)
        known.forget_missing()
        state.drop_other_blobs(uploads.digests() | known.digests(besides=state.blobs))
        await uploads.load()
        place = settings.server.adapters
        folder = AdapterFolder(Path(place), store, intake) if place else None
        saving = asyncio.create_task(_save(known))
        try:
            yield AdapterService(store, uploads, folder)
        finally:
            saving.cancel()
            if folder is not None:
                await folder.close()
            await uploads.close()
            await store.close()
            known.save()
    finally:
        state.close()


async def watch(adapters: AdapterService) -> None:
    """Take in what lies in the folder, then what changes there, until cancelled."""
    if adapters.folder is not None:
        await adapters.folder.watch()


def _lock(settings: Settings) -> dict[str, str] | None:
    """The adapters that may be served; None if all may.

    Raises:
        ConfigError: the file cannot be used.
    """
    return read_lock(Path(settings.server.require_locked)) if settings.server.require_locked else None


def _open_state(settings: Settings) -> StateDir | None:
    """The state folder, or None where neither it nor an adapters folder is named.

    Raises:
        ConfigError: another server uses it, or it cannot be written.
    """
    server = settings.server
    if server.state_dir:
        root = Path(server.state_dir)
    elif server.adapters:
        root = default_state_dir(Path(server.adapters))
    else:
        return None
    try:
        return StateDir(root)
    except StorageError as error:
        raise ConfigError(f"cannot use {root}: {error}; name another folder with --state-dir") from error


def _drop(state: StateDir, checked: CheckedAdapter) -> None:
    """No adapter has that content any more: delete its file, if it is one of ours."""
    if checked.path == state.blob(checked.digest):
        state.drop_blob(checked.digest)


async def _save(known: KnownFiles) -> None:
    while True:
        await asyncio.sleep(_SAVE_INTERVAL_S)
        known.save()
