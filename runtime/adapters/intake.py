"""From files as they came to a checked GGUF: read once, checked, converted where needed, known from then on.

One at a time, so that running answers keep the processor and the disk.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

from convert.rules.adapter import AdapterSummary
from runtime.adapters.disk import StateDir
from runtime.adapters.known import KnownFile, KnownFiles, Stamp, digest_of, stamp_of
from runtime.adapters.views import CheckedAdapter
from runtime.errors import AdapterBudget, AdapterError, InvalidAdapter

Check = Callable[[Path], AdapterSummary]
"""Reads an untrusted GGUF adapter, every value included. Raises an AdapterError if it must not be loaded."""

_GGUF_NAME: Final = "adapter.gguf"
_CONVERSION: Final = b"gemlane conversion 1\n"
"""Part of a conversion's key: it changes with each converter whose results differ."""


class Convert(Protocol):
    """Makes a GGUF adapter of a folder; see ``converter.Converter``."""

    def convert(self, folder: Path, output: Path) -> Awaitable[None]:
        """Write ``output``, whole or not at all."""


class ChangedWhileReadError(Exception):
    """The files changed while they were read: what was found out is about neither state of them."""


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """The files of one adapter: a GGUF, or a folder with the files in it that count."""

    path: Path
    files: tuple[Path, ...]

    @property
    def is_gguf(self) -> bool:
        """Whether there is nothing to convert."""
        return self.files == (self.path,)

    def stamp(self) -> Stamp:
        """Raises OSError: a file is gone."""
        return stamp_of(*self.files)


class Intake:
    """Reads, checks and converts, and remembers."""

    def __init__(self, state: StateDir, known: KnownFiles, check: Check, converter: Convert, max_bytes: int) -> None:
        """Do nothing yet.

        Args:
            state: where conversions are kept.
            known: what was found out before.
            check: the rules for GGUF adapters.
            converter: for everything else.
            max_bytes: what the blobs may take on disk together, in bytes; 0: as much as there is.
        """
        self._state = state
        self._known = known
        self._check = check
        self._converter = converter
        self._max_bytes = max_bytes
        self._turn = asyncio.Lock()

    async def take(self, source: AdapterFiles, stamp: Stamp) -> CheckedAdapter:
        """The adapter in files of the adapters folder, which stay where they are.

        Raises:
            AdapterError: they are refused.
            ChangedWhileReadError: they are not those of ``stamp`` (any more).
            StorageError, ConversionDied: the server failed, not the adapter.
        """
        known = self._known.find(source.path, stamp)
        if known is not None:
            known.check()
            path = source.path if source.is_gguf else self._state.blob(known.digest)
            if source.is_gguf or path.exists():
                return CheckedAdapter(known.digest, path, known.size_bytes, known.rank, known.warnings)
        try:
            checked = await (self._read_gguf(source.path) if source.is_gguf else self.convert(source))
        except AdapterError as error:
            _check_unchanged(source, stamp)
            if isinstance(error, InvalidAdapter):  # other refusals depend on settings, which a restart may change
                self._known.note(source.path, KnownFile(stamp, code=error.code, message=str(error)))
            raise
        _check_unchanged(source, stamp)
        self._note(source.path, stamp, checked)
        return checked

    async def convert(self, source: AdapterFiles) -> CheckedAdapter:
        """The adapter in a folder of files, as a blob; a folder of equal content is not converted again.

        Raises:
            AdapterError: it is refused.
            StorageError, ConversionDied: the server failed, not the adapter.
        """
        async with self._turn:
            try:
                source_digest = await asyncio.to_thread(_digest_of_files, source.files)
            except OSError as error:
                raise InvalidAdapter(f"its files cannot be read: {error.strerror}") from error
            known = self._known.conversion_of(source_digest)
            if known is not None and self._state.blob(known).exists():
                with self._state.arriving(known):
                    return await self._open_blob(known)
            self._check_budget(sum(path.stat().st_size for path in source.files))
            with self._state.workplace() as place:
                gguf = place / _GGUF_NAME
                await self._converter.convert(source.path, gguf)
                checked = await self._keep(gguf)
            self._known.note_conversion(source_digest, checked.digest)
            return checked

    async def keep(self, source: AdapterFiles) -> CheckedAdapter:
        """An uploaded GGUF, checked and moved to the blobs.

        Raises:
            AdapterError, StorageError: as ``take``.
        """
        async with self._turn:
            self._check_budget(source.path.stat().st_size)
            return await self._keep(source.path)

    async def open_blob(self, digest: str) -> CheckedAdapter:
        """The adapter that an earlier run kept under that digest.

        Raises:
            AdapterError: its file is gone, or is another one now.
        """
        async with self._turn:
            return await self._open_blob(digest)

    async def _open_blob(self, digest: str) -> CheckedAdapter:
        path = self._state.blob(digest)
        try:
            stamp = stamp_of(path)
        except OSError as error:
            raise InvalidAdapter("its converted file is gone; upload it again") from error
        known = self._known.find(path, stamp)
        if known is not None:
            known.check()
            return CheckedAdapter(known.digest, path, known.size_bytes, known.rank, known.warnings)
        checked = await self._read(path)
        if checked.digest != digest:
            raise InvalidAdapter("its converted file is not what was converted; upload it again")
        self._note(path, stamp, checked)
        return checked

    async def _keep(self, gguf: Path) -> CheckedAdapter:
        checked = await self._read(gguf)
        with self._state.arriving(checked.digest):  # the last adapter with that content may be removed at this moment
            path = await asyncio.to_thread(self._state.keep_blob, gguf, checked.digest)
            checked = replace(checked, path=path)
            self._note(path, stamp_of(path), checked)
        return checked

    async def _read_gguf(self, path: Path) -> CheckedAdapter:
        async with self._turn:
            return await self._read(path)

    async def _read(self, path: Path) -> CheckedAdapter:
        return await asyncio.to_thread(_read, path, self._check)

    def _check_budget(self, n_bytes: int) -> None:
        """Refuse what would take more disk than the uploads and conversions may have together."""
        if self._max_bytes and self._state.blob_bytes() + n_bytes > self._max_bytes:
            raise AdapterBudget(
                f"uploads and conversions may take {self._max_bytes >> 20} MiB together (--adapter-disk-mib), "
                f"and this one would take about {n_bytes >> 20} MiB more"
            )

    def _note(self, path: Path, stamp: Stamp, checked: CheckedAdapter) -> None:
        found = KnownFile(stamp, checked.digest, checked.size_bytes, checked.rank, warnings=checked.warnings)
        self._known.note(path, found)


def _read(path: Path, check: Check) -> CheckedAdapter:
    try:
        summary = check(path)
        return CheckedAdapter(digest_of(path), path, path.stat().st_size, summary.max_rank, summary.warnings)
    except OSError as error:
        raise InvalidAdapter(f"it cannot be read: {error.strerror}") from error


def _digest_of_files(paths: tuple[Path, ...]) -> str:
    """What a folder's files contain, by their names and digests."""
    lines = (f"{digest_of(path)} {path.name}\n".encode() for path in sorted(paths))
    return hashlib.sha256(b"".join((_CONVERSION, *lines))).hexdigest()


def _check_unchanged(source: AdapterFiles, stamp: Stamp) -> None:
    try:
        is_same = source.stamp() == stamp
    except OSError:
        is_same = False
    if not is_same:
        raise ChangedWhileReadError(source.path.name)
