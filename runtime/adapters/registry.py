"""The adapters that requests may name: by name or by id, each standing for one content digest.

Knows files and the ``Engine`` protocol; nothing of HTTP or of a dialect's names for things.
"""

from __future__ import annotations

import hashlib
import logging
import stat
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from runtime.engines.protocol import Engine
from runtime.errors import (
    AdapterError,
    EngineUnavailable,
    GemlaneError,
    IncompleteAdapter,
    InvalidAdapter,
    UnknownAdapter,
)
from runtime.generation import Blend, BlendMember

Check = Callable[[Path], None]
"""Reads an untrusted GGUF adapter and raises (ValueError, OSError or an AdapterError) if it must not be loaded."""

_ID_NAMESPACE: Final = uuid.UUID("6a1b4c5e-70c3-5c60-9d4f-9b6a3b1f0e57")
"""Ours alone, drawn once; ids derived from digests must never change."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServedAdapter:
    """One adapter that can be served. ``digest`` is the SHA-256 of the GGUF file at ``path``, in hexadecimal."""

    id: str
    name: str
    digest: str
    path: Path
    created_at: datetime


def id_of(digest: str) -> str:
    """The stable id of a file that nobody gave one: a UUID derived from its content."""
    return str(uuid.uuid5(_ID_NAMESPACE, digest))


class Registry:
    """Names and ids -> adapters. Belongs to the event loop; names and ids are unique."""

    def __init__(self) -> None:
        self._by_name: dict[str, ServedAdapter] = {}
        self._by_id: dict[str, ServedAdapter] = {}
        self._reserved: dict[str, str] = {}  # id -> name of adapters that are not whole yet

    def __iter__(self) -> Iterator[ServedAdapter]:
        return iter(sorted(self._by_name.values(), key=lambda adapter: adapter.name))

    def __len__(self) -> int:
        return len(self._by_name)

    @property
    def n_reserved(self) -> int:
        """Adapters that have a name and an id, but not yet all of their files."""
        return len(self._reserved)

    def name_of(self, digest: str) -> str | None:
        """A name of the adapter with that content, or None."""
        return next((adapter.name for adapter in self._by_name.values() if adapter.digest == digest), None)

    def count_by_state(self) -> dict[str, int]:
        """How many adapters are in each state."""
        return {"awaiting": self.n_reserved, "ready": len(self)}

    def find(self, name_or_id: str) -> ServedAdapter | None:
        """The adapter of that id, else of that name, else None."""
        return self._by_id.get(name_or_id) or self._by_name.get(name_or_id)

    def resolve(self, name_or_id: str) -> Blend:
        """The adapter, at scale 1, as what the engine applies.

        Raises:
            UnknownAdapter, IncompleteAdapter: as ``member``.
        """
        return Blend((BlendMember(self.member(name_or_id)),))

    def member(self, name_or_id: str) -> str:
        """The content digest of an adapter.

        Raises:
            UnknownAdapter: no adapter has that id or name.
            IncompleteAdapter: one has, but its files are not all there.
        """
        adapter = self.find(name_or_id)
        if adapter is None and (name_or_id in self._reserved or name_or_id in self._reserved.values()):
            raise IncompleteAdapter("the adapter still waits for one of its two files")
        if adapter is None:
            raise UnknownAdapter("no adapter has that name or id; GET /health lists those there are", name_or_id)
        return adapter.digest

    def add(self, adapter: ServedAdapter) -> None:
        """Let requests name ``adapter``.

        Raises:
            InvalidAdapter: its name is taken, as a name or an id.
        """
        self._check_free(adapter.name)
        self._by_name[adapter.name] = adapter
        self._by_id.setdefault(adapter.id, adapter)  # equal content under a second name shares the id

    def remove(self, adapter: ServedAdapter) -> None:
        """Forget ``adapter``; its file stays."""
        self._by_name.pop(adapter.name, None)
        if self._by_id.get(adapter.id) is adapter:
            del self._by_id[adapter.id]

    def reserve(self, adapter_id: str, name: str) -> None:
        """Keep a name for an adapter whose files are still to come.

        Raises:
            InvalidAdapter: it is taken, as a name or an id.
        """
        self._check_free(name)
        self._reserved[adapter_id] = name

    def release(self, adapter_id: str) -> None:
        """Give a reserved name back."""
        self._reserved.pop(adapter_id, None)

    def _check_free(self, name: str) -> None:
        if name in self._by_name or name in self._by_id or name in self._reserved or name in self._reserved.values():
            raise InvalidAdapter(f"the adapter name {name[:200]!r} is taken; choose another")

    async def register(self, engine: Engine) -> None:
        """Tell ``engine`` every adapter; one that it refuses is logged and forgotten."""
        for adapter in list(self):
            try:
                await engine.add_adapter(adapter.digest, adapter.path)
            except EngineUnavailable:
                continue  # the engine will be told once it is ready
            except GemlaneError as error:
                log.warning("adapter %s is left out: %s", adapter.name, error)
                self.remove(adapter)


def scan(folder: Path, check: Check) -> Iterator[ServedAdapter]:
    """Every ``*.gguf`` of ``folder`` that passes ``check``; the others are logged with their reason."""
    for path in sorted(folder.glob("*.gguf")):
        try:
            yield read_adapter(path, check)
        except (AdapterError, ValueError, OSError) as error:
            log.warning("adapter %s is left out: %s", path.name, error)


def read_adapter(path: Path, check: Check) -> ServedAdapter:
    """The adapter that one GGUF file is, named like the file.

    Raises:
        InvalidAdapter: not a regular file (a FIFO would block for ever), or a name that is no Unicode.
        ValueError, OSError, AdapterError: as ``check`` raises them.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise InvalidAdapter("not a regular file")
    if any("\ud800" <= character <= "\udfff" for character in path.stem):
        raise InvalidAdapter("its file name is not valid Unicode")
    check(path)
    digest = digest_of(path)
    return ServedAdapter(id_of(digest), path.stem, digest, path, datetime.fromtimestamp(status.st_mtime, UTC))


def digest_of(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
