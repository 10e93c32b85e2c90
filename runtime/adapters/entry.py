"""What the store keeps of an adapter. Only the store and its lives change it; other modules get views."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from runtime.adapters.life import AdapterState
from runtime.adapters.views import AdapterView, CheckedAdapter, NewAdapter, ReplacementView
from runtime.errors import GemlaneError


@dataclass(slots=True)
class Generation:
    """One content under one name."""

    adapter: NewAdapter
    state: AdapterState = AdapterState.AWAITING
    reason: str = ""
    error: GemlaneError | None = None
    checked: CheckedAdapter | None = None

    @property
    def digest(self) -> str | None:
        """The SHA-256 of its GGUF; None before it is checked."""
        return self.checked.digest if self.checked else None


@dataclass(slots=True)
class AdapterEntry:
    """One name: the generation that is served, and one that is to replace it."""

    new: NewAdapter
    current: Generation
    modified_at: datetime
    candidate: Generation | None = None
    n_uses: int = 0
    last_used_at: datetime | None = None
    is_pinned: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while a generation is brought in or the adapter is removed: one change at a time."""


def view_of(adapter: AdapterEntry) -> AdapterView:
    """The entry as it is now."""
    served, candidate = adapter.current, adapter.candidate
    return AdapterView(
        adapter=adapter.new,
        state=served.state,
        reason=served.reason,
        modified_at=adapter.modified_at,
        digest=served.digest,
        size_bytes=served.checked.size_bytes if served.checked else 0,
        rank=served.checked.rank if served.checked else 0,
        n_uses=adapter.n_uses,
        last_used_at=adapter.last_used_at,
        is_pinned=adapter.is_pinned,
        replacement=ReplacementView(candidate.state, candidate.reason, candidate.digest) if candidate else None,
        warnings=served.checked.warnings if served.checked else (),
    )


def file_of(digest: str, entries: Iterable[AdapterEntry]) -> CheckedAdapter | None:
    """The file of some adapter that has that content; None if none has it."""
    generations = (one for entry in entries for one in (entry.current, entry.candidate))
    files = (one.checked for one in generations if one is not None and one.checked is not None)
    return next((file for file in files if file.digest == digest), None)
