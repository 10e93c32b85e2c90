"""What was found out about files, by their size, times and inode: a file that has not changed is not read again.

Kept in one JSON file. It is a cache: without it, everything is read once more.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from convert.errors import OutputProblem
from convert.files import whole_file
from runtime.errors import AdapterError, from_code

log = logging.getLogger(__name__)

_FORMAT: Final = 2
"""The version of the file's form and of the rules: a new rule for adapters changes it."""
_MAX_BYTES: Final = 256 << 20

Stamp = tuple[tuple[int, int, int, int], ...]
"""Size, modification time, change time (both in nanoseconds) and inode of each file, in a fixed order."""


def stamp_of(*paths: Path) -> Stamp:
    """The stamp by which a changed file is recognised; the change time cannot be set back by a copy.

    Raises:
        OSError: a file is gone.
    """
    statuses = (path.stat() for path in paths)
    return tuple((status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino) for status in statuses)


def digest_of(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, slots=True)
class KnownFile:
    """What a file (or an adapter's folder) was found to be: a content with its size in bytes and its rank, or refused.

    ``code`` and ``message`` are those of the AdapterError that refused it.
    """

    stamp: Stamp
    digest: str = ""
    size_bytes: int = 0
    rank: int = 0
    code: str = ""
    message: str = ""
    warnings: tuple[str, ...] = ()

    def check(self) -> None:
        """Refuse again what was refused.

        Raises:
            AdapterError: it was.
        """
        if self.code:
            error = from_code(self.code, self.message)
            raise error if isinstance(error, AdapterError) else AdapterError(self.message)


class KnownFiles:
    """Paths -> what their files were found to be, and digests of sources -> digests of what they were converted to."""

    def __init__(self, path: Path, base: Stamp) -> None:
        """Read what an earlier run found out; it is forgotten if the base model's file is another one.

        Args:
            path: the JSON file.
            base: the stamp of the base model's file, against which adapters are checked.
        """
        self._path = path
        self._base = base
        self._files: dict[str, KnownFile] = {}
        self._conversions: dict[str, str] = {}
        self._is_dirty = False
        try:
            self._load()
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            log.warning("what is known of files cannot be read, so they are read again: %s", error)

    def _load(self) -> None:
        with self._path.open("rb") as file:
            content: dict[str, Any] = json.loads(file.read(_MAX_BYTES))
        if content["format"] != _FORMAT:
            return
        self._conversions = {str(source): str(result) for source, result in content["conversions"].items()}
        if _stamp(content["base"]) == self._base:
            self._files = {str(path): _known_file(fields) for path, fields in content["files"].items()}

    def find(self, path: Path, stamp: Stamp) -> KnownFile | None:
        """What the file was found to be, if it has not changed since."""
        known = self._files.get(str(path))
        return known if known is not None and known.stamp == stamp else None

    def note(self, path: Path, known: KnownFile) -> None:
        """Keep what a file was found to be."""
        self._files[str(path)] = known
        self._is_dirty = True

    def conversion_of(self, source_digest: str) -> str | None:
        """The digest of the GGUF that a source of that digest was converted to."""
        return self._conversions.get(source_digest)

    def note_conversion(self, source_digest: str, digest: str) -> None:
        """Keep what a source was converted to."""
        self._conversions[source_digest] = digest
        self._is_dirty = True

    def forget_missing(self) -> None:
        """Forget files that are gone, and conversions to contents that no file is known to have."""
        files = {path: known for path, known in self._files.items() if Path(path).exists()}
        digests = {known.digest for known in files.values()}
        conversions = {source: result for source, result in self._conversions.items() if result in digests}
        self._is_dirty |= (len(files), len(conversions)) != (len(self._files), len(self._conversions))
        self._files, self._conversions = files, conversions

    def digests(self, besides: Path) -> set[str]:
        """The contents of all known files but those in the folder ``besides``."""
        return {known.digest for path, known in self._files.items() if Path(path).parent != besides}

    def save(self) -> None:
        """Save what is new; if the disk refuses, the files are read again at the next start."""
        if not self._is_dirty:
            return
        content = {
            "format": _FORMAT,
            "base": self._base,
            "conversions": self._conversions,
            "files": {path: asdict(known) for path, known in self._files.items()},
        }
        try:
            with whole_file(self._path) as file:
                file.write(json.dumps(content, separators=(",", ":")).encode())
        except OutputProblem as error:
            log.warning("what is known of files cannot be written: %s", error)
            return
        self._is_dirty = False


def _known_file(fields: dict[str, Any]) -> KnownFile:
    return KnownFile(**(fields | {"stamp": _stamp(fields["stamp"]), "warnings": tuple(fields["warnings"])}))


def _stamp(value: Any) -> Stamp:
    return tuple((int(size), int(mtime), int(ctime), int(inode)) for size, mtime, ctime, inode in value)
