"""The folder where a server keeps what is its own: uploads, conversions, and what it knows of files.

::

    STATE_DIR/
      lock                       held by the one server that uses the folder
      known.json                 what was found out about files, so that a restart reads none of them twice
      pins.json                  names of the adapters that keep a lane
      blobs/<digest>.gguf        GGUF adapters, by their content; .gguf.json beside it is the converter's record
      uploads/<id>/record.json   an uploaded adapter; its digest says which blob it is
      incoming/                  files on their way; emptied at the start

A file is written beside its place, synced, and moved there. The record is what counts: a blob that no record and no
folder needs is deleted.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import platformdirs

from convert.errors import OutputProblem
from runtime.errors import ConfigError, StorageError

log = logging.getLogger(__name__)

_APP: Final = "gemlane"
_SHOWN_DIGITS: Final = 12  # of the digest of a path: enough to keep folders of one name apart
_RECORD_SUFFIX: Final = ".gguf.json"


def default_state_dir(adapters: Path) -> Path:
    """Where a server with that adapters folder keeps its state: the platform's place for it, apart for each folder."""
    place = adapters.resolve()
    digest = hashlib.sha256(os.fsencode(place)).hexdigest()[:_SHOWN_DIGITS]
    return platformdirs.user_state_path(_APP) / f"{place.name or 'root'}-{digest}"


class StateDir:
    """The folder, made if it is missing, and locked against a second server until ``close``."""

    def __init__(self, root: Path) -> None:
        """Take the folder over.

        Raises:
            ConfigError: another server uses it.
            StorageError: it cannot be written.
        """
        self.root = root
        self._arriving: set[str] = set()
        """Digests of blobs that an adapter is about to use. Only the event loop changes them."""
        self.blobs, self.uploads, self.incoming = root / "blobs", root / "uploads", root / "incoming"
        with storage_errors():
            root.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._take_lock()
            with storage_errors():
                shutil.rmtree(self.incoming, ignore_errors=True)
                for folder in (self.blobs, self.uploads, self.incoming):
                    folder.mkdir(exist_ok=True)
        except BaseException:
            self.close()
            raise

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.pread(self._lock, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise ConfigError(
                f"{self.root} is in use by another server (process {owner}); stop it, or give this one its own "
                "folder with --state-dir"
            ) from error
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        """Let another server have the folder."""
        os.close(self._lock)

    def blob(self, digest: str) -> Path:
        """The path of the GGUF with that content, whether it is there or not."""
        return self.blobs / f"{digest}.gguf"

    @contextlib.contextmanager
    def workplace(self) -> Iterator[Path]:
        """An empty folder for incomplete files; it is deleted at the end of the context.

        Raises:
            StorageError: it cannot be made.
        """
        with storage_errors():
            place = Path(tempfile.mkdtemp(dir=self.incoming))
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)

    @contextlib.contextmanager
    def arriving(self, digest: str) -> Iterator[None]:
        """Keep ``drop_blob`` from deleting that content while the context lasts: an adapter is about to use it."""
        self._arriving.add(digest)
        try:
            yield
        finally:
            self._arriving.discard(digest)

    def keep_blob(self, gguf: Path, digest: str) -> Path:
        """Move a GGUF of that content, and the record beside it, to its place; return the new path.

        Raises:
            StorageError: it cannot be written.
        """
        place = self.blob(digest)
        record = gguf.with_name(gguf.name + ".json")
        with storage_errors():
            sync(gguf)
            if record.exists():
                record.replace(place.with_name(place.name + ".json"))
            gguf.replace(place)
            sync(self.blobs)
        return place

    def drop_blob(self, digest: str) -> None:
        """Delete the GGUF of that content; nothing happens if there is none, or one is arriving."""
        if digest in self._arriving:
            return
        with contextlib.suppress(OSError):
            self.blob(digest).unlink(missing_ok=True)
            self.blobs.joinpath(digest + _RECORD_SUFFIX).unlink(missing_ok=True)

    def drop_other_blobs(self, digests: Iterable[str]) -> None:
        """Delete every blob whose content is not among those."""
        kept = set(digests)
        for path in self.blobs.iterdir():
            if path.name.partition(".")[0] not in kept:
                path.unlink(missing_ok=True)

    def blob_bytes(self) -> int:
        """What the blobs take on disk, in bytes."""
        return sum(path.stat().st_size for path in self.blobs.iterdir())


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk.

    Raises:
        OSError: the disk refuses.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def storage_errors() -> Iterator[None]:
    """Turn an error of the operating system into a StorageError.

    Raises:
        StorageError: the context raised an OSError, or an OutputProblem of the converter's.
    """
    try:
        yield
    except OSError as error:
        log.error("the state folder cannot be written: %s", error)
        raise StorageError(f"the server's state folder cannot be written: {error.strerror}") from error
    except OutputProblem as error:
        log.error("%s", error)
        raise StorageError("the server's state folder cannot be written; is there room on its disk?") from error
