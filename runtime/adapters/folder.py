"""The adapters folder: what lies in it is served, without a restart and without a change to the folder.

It may hold GGUF adapters and the folders that PEFT and MLX leave. The file system's own notices make for speed, a look
every few seconds for the file systems that send none. A file counts once it has stood still for a moment.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
import time
import uuid
from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import watchfiles

from convert.formats import describe_folder
from runtime.adapters.intake import AdapterFiles, ChangedWhileReadError, Intake
from runtime.adapters.known import Stamp, stamp_of
from runtime.adapters.store import Store
from runtime.adapters.views import CheckedAdapter, NewAdapter, Source
from runtime.errors import AdapterError, GemlaneError, InvalidAdapter, UnknownAdapter

log = logging.getLogger(__name__)

CONFIG_NAME: Final = "adapter_config.json"
PEFT_WEIGHTS: Final = "adapter_model.safetensors"
MLX_WEIGHTS: Final = "adapters.safetensors"
_ID_NAMESPACE: Final = uuid.UUID("6a1b4c5e-70c3-5c60-9d4f-9b6a3b1f0e57")
"""Drawn once; ids that are derived from file names must never change."""
_UNFINISHED: Final = (".part", ".partial", ".tmp", ".crdownload", ".download", "~")
"""How programs that copy and download call a file that is not whole yet."""
_STILL_S: Final = 0.3
"""How long a file must not have changed. A copy in progress changes its file every few milliseconds."""
_POLL_S: Final = 2.0
HIDDEN: Final = "hidden"
_RETRY_S: Final = 60.0
"""The pause before a conversion that failed for want of disk or memory is tried again."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something in the folder that is, or is to become, an adapter; ``missing`` says what it waits for."""

    location: str
    name: str
    source: AdapterFiles
    stamp: Stamp
    changed_at: float
    """The latest time of its files, in seconds since 1970."""
    missing: str = ""
    refused: str = ""


_RECORD: Final = ".gguf.json"
"""What the converter writes beside a GGUF file that it has made."""


def id_of(location: str) -> str:
    """The id of the adapter at that place in the folder: the same over restarts and generations."""
    return str(uuid.uuid5(_ID_NAMESPACE, location))


def candidates(folder: Path) -> tuple[dict[str, Candidate], dict[str, str]]:
    """What the folder holds, by file name: the candidates, and why each other entry is none. Reads no file.

    Raises:
        OSError: the folder cannot be read.
    """
    found: dict[str, Candidate] = {}
    others: dict[str, str] = {}
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda one: one.name):
            path = folder / entry.name
            try:
                found_or_reason = _candidate(path)
            except OSError as error:  # it went away, or may not be read
                found_or_reason = f"cannot be read: {error.strerror}"
            if isinstance(found_or_reason, Candidate):
                found[entry.name] = found_or_reason
            else:
                others[entry.name] = found_or_reason
    return found, others


def _candidate(path: Path) -> Candidate | str:
    if path.name.startswith(".") or path.name.endswith(_RECORD):
        return HIDDEN
    if path.name.endswith(_UNFINISHED):
        return "not finished, by its name"
    status = path.stat()
    is_gguf = path.suffix.lower() == ".gguf"
    if stat.S_ISDIR(status.st_mode) and not is_gguf:
        return _folder_candidate(path)
    if not is_gguf:
        return "neither a .gguf file nor a folder with an adapter_config.json"
    refused = "" if stat.S_ISREG(status.st_mode) else "not a regular file"
    stamp = stamp_of(path)
    refused = refused or _unusable_name(path.stem)
    return Candidate(path.name, path.stem, AdapterFiles(path, (path,)), stamp, _latest(stamp), refused=refused)


def _folder_candidate(path: Path) -> Candidate | str:
    weights = next((path / name for name in (PEFT_WEIGHTS, MLX_WEIGHTS) if (path / name).exists()), None)
    config = path / CONFIG_NAME
    files = tuple(one for one in (config, weights) if one is not None and one.exists())
    if not files:
        what = _described(path)
        return f"a folder without {CONFIG_NAME}" + (f": {what}" if what else "")
    missing = ""
    if weights is None:
        what = _described(path)
        missing = f"waits for {PEFT_WEIGHTS} (or {MLX_WEIGHTS})" + (f": {what}" if what else "")
    elif len(files) < 2:
        missing = f"waits for {CONFIG_NAME}"
    stamp = stamp_of(*files)
    return Candidate(
        path.name, path.name, AdapterFiles(path, files), stamp, _latest(stamp), missing, _unusable_name(path.name)
    )


def _described(path: Path) -> str | None:
    """What a folder is, if it is known for something else than an adapter: pickles, a training run, GGUF files."""
    with os.scandir(path) as entries:
        kinds = [(entry.name, entry.is_dir()) for entry in entries]
    return describe_folder((name for name, is_dir in kinds if not is_dir), (name for name, is_dir in kinds if is_dir))


def _unusable_name(name: str) -> str:
    return "its file name is not valid Unicode" if any("\ud800" <= one <= "\udfff" for one in name) else ""


def _latest(stamp: Stamp) -> float:
    return max(max(mtime_ns, ctime_ns) for _, mtime_ns, ctime_ns, _ in stamp) / 1e9


class AdapterFolder:
    """Keeps the store in step with the folder."""

    def __init__(
        self, folder: Path, store: Store, intake: Intake, *, still_s: float = _STILL_S, poll_s: float = _POLL_S
    ) -> None:
        self._folder = folder
        self._store = store
        self._intake = intake
        self._still_s = still_s
        self._poll_s = poll_s
        self._taken: dict[str, Stamp] = {}
        """What was handed to the store last, by file name."""
        self._moving: dict[str, Stamp | None] = {}
        """What differed from that at the last look; None: it was gone."""
        self._not_before: dict[str, float] = {}
        self._nameless: set[str] = set()
        """Those whose name another adapter has."""
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._is_readable = True
        self.others: dict[str, str] = {}
        """Why each other entry of the folder is not an adapter, by file name."""

    async def start(self) -> None:
        """Take in what lies there; returns once each of them is served, refused, or waits for files."""
        await self.look()
        await self.settled()
        if not self._taken:
            log.warning("%s holds no adapter%s", self._folder, "" if self.others else ": it is empty")

    async def rescan(self) -> None:
        """Look now, and return once what has changed is served or refused."""
        await self._look_until_still()
        await self.settled()

    async def settled(self) -> None:
        """Wait for everything that is being taken in."""
        while self._tasks:
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def watch(self) -> None:
        """Look again whenever something may have changed, until cancelled."""
        while True:
            try:
                timeout_ms = round(1000 * self._poll_s)
                async for _ in watchfiles.awatch(
                    self._folder, watch_filter=None, rust_timeout=timeout_ms, yield_on_timeout=True, step=20
                ):
                    await self._look_until_still()
            except (OSError, RuntimeError) as error:  # no watches left, or the folder itself is gone
                log.warning("the adapters folder is looked at every %g s: %s", self._poll_s, error)
                await asyncio.sleep(self._poll_s)
                await self._look_until_still()

    async def _look_until_still(self) -> None:
        await self.look()
        while self._moving:
            await asyncio.sleep(self._still_s)
            await self.look()

    async def close(self) -> None:
        """Stop; work in progress begins again at the next start of the server."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def look(self) -> None:
        """Compare the folder with what was taken from it; a folder that cannot be read changes nothing."""
        try:
            found, others = await asyncio.to_thread(candidates, self._folder)
        except OSError as error:
            if self._is_readable:
                log.warning("%s cannot be read, so adapters stay as they are: %s", self._folder, error.strerror)
            self._is_readable = False
            return
        self._is_readable = True
        for name in sorted(set(others) - set(self.others)):
            if others[name] != HIDDEN:
                log.warning("%s in the adapters folder is left out: %s", name, others[name])
        self.others = others
        moving = self._moving
        self._moving = {}
        for location, candidate in found.items():
            if self._needs_taking(candidate) and self._is_still(candidate, moving):
                self._taken[location] = candidate.stamp
                self._start(location, self._take(candidate))
        for location in [one for one in self._taken if one not in found]:
            if location in moving and moving[location] is None:
                del self._taken[location]
                self._start(location, self._remove(location))
            else:
                self._moving[location] = None

    def _needs_taking(self, candidate: Candidate) -> bool:
        location = candidate.location
        if self._taken.get(location) != candidate.stamp:
            return time.monotonic() >= self._not_before.get(location, 0.0)
        return location in self._nameless and location not in self._tasks and self._store.is_free(candidate.name)

    def _is_still(self, candidate: Candidate, moving: dict[str, Stamp | None]) -> bool:
        """Whether a candidate has not changed for a while: by the clock, or by two looks where clocks differ."""
        is_old = time.time() - candidate.changed_at >= self._still_s
        if is_old or moving.get(candidate.location) == candidate.stamp:
            return True
        self._moving[candidate.location] = candidate.stamp
        return False

    def _start(self, location: str, work: Coroutine[Any, Any, None]) -> None:
        """Work on one adapter after what is being done for it already."""
        task = asyncio.create_task(self._after(self._tasks.get(location), work))
        self._tasks[location] = task
        task.add_done_callback(lambda done: self._tasks.pop(location) if self._tasks[location] is done else None)

    async def _after(self, earlier: asyncio.Task[None] | None, work: Coroutine[Any, Any, None]) -> None:
        if earlier is not None:
            await asyncio.wait({earlier})
        await work

    async def _take(self, candidate: Candidate) -> None:
        """Bring one candidate into the store; the store shows a refusal."""
        adapter_id = id_of(candidate.location)
        try:
            if not await self._know(adapter_id, candidate):
                return
            if candidate.missing:
                await self._store.wait_for_files(adapter_id, candidate.missing)
            else:
                await self._store.fill(adapter_id, lambda: self._prepare(candidate))
        except ChangedWhileReadError:
            self._taken.pop(candidate.location, None)  # the next look finds it changed
        except AdapterError as error:
            log.warning("adapter %s is refused: %s", candidate.location, error)
        except GemlaneError as error:
            log.error("adapter %s cannot be taken in now: %s", candidate.location, error)
            self._taken.pop(candidate.location, None)
            self._not_before[candidate.location] = time.monotonic() + _RETRY_S

    async def _prepare(self, candidate: Candidate) -> CheckedAdapter:
        if candidate.refused:
            raise InvalidAdapter(candidate.refused)
        return await self._intake.take(candidate.source, candidate.stamp)

    async def _know(self, adapter_id: str, candidate: Candidate) -> bool:
        """Add the adapter to the store; False if another one has its name."""
        is_known = self._store.find(adapter_id) is not None
        if is_known and candidate.location not in self._nameless:
            return True
        if is_known:
            await self._store.remove(adapter_id)
        created_at = datetime.fromtimestamp(candidate.changed_at, UTC)
        new = NewAdapter(adapter_id, candidate.name, Source.FOLDER, created_at, candidate.location)
        if self._store.is_free(candidate.name):
            self._nameless.discard(candidate.location)
            self._store.add(new)
            return True
        self._nameless.add(candidate.location)
        error = InvalidAdapter("another adapter has its name")
        log.warning("adapter %s is refused: %s", candidate.location, error)
        self._store.add_refused(new, error)
        return False

    async def _remove(self, location: str) -> None:
        self._nameless.discard(location)
        try:
            await self._store.remove(id_of(location))
            log.info("adapter %s is gone from the folder", location)
        except UnknownAdapter:
            pass
