"""The adapters folder, looked at as the server does: what would be served, what would not, and why."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from runtime.adapters.check import make_check
from runtime.adapters.converter import Converter
from runtime.adapters.folder import HIDDEN, Candidate, candidates
from runtime.adapters.known import digest_of
from runtime.adapters.lock import check_locked, read_lock
from runtime.config import Settings
from runtime.doctor.finding import Finding, fault, note, ok
from runtime.errors import ConfigError, GemlaneError, InvalidAdapter

Examine = Callable[[Candidate], None]
"""Raises a GemlaneError or OSError for what the server would refuse."""


def check_adapters(settings: Settings, *, converts: bool) -> Iterator[Finding]:
    """Every entry of the folder that would not be served, and how many would.

    Args:
        settings: the user's.
        converts: whether folders are converted, as a trial; else they are only counted.
    """
    server = settings.server
    if not server.adapters:
        yield note("adapters", "no folder is named", "Name one with --adapters DIR")
        return
    folder = Path(server.adapters)
    if not folder.is_dir():
        what = "not a folder" if folder.exists() else "no such folder"
        yield fault("adapters", f"{folder}: {what}", "Make it, or name another with --adapters")
        return
    try:
        lock = read_lock(Path(server.require_locked)) if server.require_locked else None
        found, others = candidates(folder)
    except (ConfigError, OSError) as error:
        yield fault("adapters", str(error))
        return
    for name, reason in others.items():
        if reason != HIDDEN:
            yield note("adapters", f"{name} is left out: {reason}", "")
    with tempfile.TemporaryDirectory(prefix="gemlane-doctor-") as scratch:
        yield from _examine_all(found, _examiner(settings, lock, Path(scratch) if converts else None))
    n_folders = sum(not one.source.is_gguf for one in found.values())
    if n_folders and not converts:
        yield note("adapters", f"{n_folders} of them have to be converted", "Leave --quick out to try it")
    if not os.access(folder, os.W_OK):
        yield note("adapters", f"{folder} is read-only", "")


def _examine_all(found: Mapping[str, Candidate], examine: Examine) -> Iterator[Finding]:
    counts: Counter[str] = Counter()
    for name, candidate in found.items():
        try:
            if candidate.refused:
                raise InvalidAdapter(candidate.refused)
            if candidate.missing:
                yield note("adapters", f"{name} {candidate.missing}", "")
                continue
            examine(candidate)
            counts["sound"] += 1
        except (GemlaneError, OSError) as error:
            yield fault("adapters", f"{name} is refused: {error}")
    yield ok("adapters", f"{counts['sound']} of {len(found)} sound")


def _examiner(settings: Settings, lock: Mapping[str, str] | None, scratch: Path | None) -> Examine:
    """The checks of the server; folders are converted into ``scratch``, if there is one."""
    base = Path(settings.engine.model)
    check, converter = make_check(base), Converter(base, settings.engine.max_lora_rank)

    def examine(candidate: Candidate) -> None:
        path = candidate.source.path
        if not candidate.source.is_gguf:
            if scratch is None:
                return
            output = scratch / "converted.gguf"
            output.unlink(missing_ok=True)
            asyncio.run(converter.convert(path, output))
            path = output
        check(path)
        if lock is not None:
            check_locked(lock, candidate.name, digest_of(path))

    return examine
