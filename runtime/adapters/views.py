"""What the store says about adapters: plain values, from which every list, page and metric is made."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from runtime.adapters.life import USABLE, AdapterState


class Source(StrEnum):
    """How an adapter came in."""

    FOLDER = "folder"
    """Its file or folder lies in ``--adapters``."""
    UPLOAD = "upload"
    """It came over HTTP; its files are ours."""


@dataclass(frozen=True, slots=True)
class CheckedAdapter:
    """A GGUF that keeps every rule. ``digest`` is the SHA-256 of the file at ``path``, in hexadecimal.

    ``warnings`` say what may make it useless: that it changes nothing, or was made for another base.
    """

    digest: str
    path: Path
    size_bytes: int
    rank: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NewAdapter:
    """What is known of an adapter before any of its files: who it is, and where it comes from.

    ``location`` is the name of its file or folder inside ``--adapters``; empty for uploads.
    """

    id: str
    name: str
    source: Source
    created_at: datetime
    location: str = ""
    description: str = ""
    is_public: bool = False


@dataclass(frozen=True, slots=True)
class ReplacementView:
    """A newer generation under the name of a served adapter: on its way, or refused."""

    state: AdapterState
    reason: str
    digest: str | None


@dataclass(frozen=True, slots=True)
class AdapterView:
    """One adapter at one moment. Times are UTC; ``digest``, ``size_bytes`` and ``rank`` are those of its GGUF."""

    adapter: NewAdapter
    state: AdapterState
    reason: str
    """Why it is refused, or what it waits for; else empty."""
    modified_at: datetime
    digest: str | None = None
    size_bytes: int = 0
    rank: int = 0
    n_uses: int = 0
    """Requests that named it since the start of the server."""
    last_used_at: datetime | None = None
    is_pinned: bool = False
    replacement: ReplacementView | None = None
    warnings: tuple[str, ...] = ()
    """What may make it useless, though it keeps every rule."""

    @property
    def id(self) -> str:
        """The adapter's id: a UUID that stays the same over its generations and over restarts."""
        return self.adapter.id

    @property
    def name(self) -> str:
        """The adapter's name, unique among those that requests may use."""
        return self.adapter.name

    @property
    def is_usable(self) -> bool:
        """Whether requests may name it."""
        return self.state in USABLE


@dataclass(frozen=True, slots=True)
class AdapterMove:
    """One move in the life of a generation; ``before`` None: it is new; ``after`` None: it is gone."""

    id: str
    name: str
    digest: str | None
    before: AdapterState | None
    after: AdapterState | None
    reason: str = ""


def now() -> datetime:
    """This moment, in UTC."""
    return datetime.now(UTC)


def normal(name: str) -> str:
    """A name in the form in which names are compared: macOS composes accents in file names differently (NFD)."""
    return unicodedata.normalize("NFC", name)


def set_digest(adapters: Iterable[AdapterView]) -> str:
    """The SHA-256, in hexadecimal, of which usable adapters there are and what is in them.

    Servers with the same adapters have the same one, whatever ids and dates they gave them. It is made of lines
    ``DIGEST  NAME``, as a lock file has them, sorted by name.
    """
    usable = sorted((normal(one.name), one.digest or "") for one in adapters if one.is_usable)
    return hashlib.sha256("".join(f"{digest}  {name}\n" for name, digest in usable).encode()).hexdigest()
