"""Prefixes on disk: hot prefixes survive a restart.

Each prefix has one file: a line of JSON that describes it, the tokens, and llama.cpp's state of the sequence. A file is
used only if every part of that line fits (model, cache format, llama.cpp) and its digest is right. It is written under
another name and renamed, so it is complete or absent. The folder is bounded; the file used longest ago is deleted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import stat
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from convert.errors import OutputProblem
from convert.files import whole_file
from runtime.engine.coverage import Coverage
from runtime.generation import Blend, BlendMember

_LOG = logging.getLogger("gemlane.engine")
_FORMAT = 2
_SUFFIX = ".prefix"
# The model's identity includes its whole header and this many samples of its weights.
_N_SAMPLES, _SAMPLE_BYTES = 256, 4096
_MAX_BYTES = 4 << 30
_MAX_LINE_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class SavedPrefix:
    """A prefix from disk: which tokens run under which blend, the tokens, and llama.cpp's state."""

    coverage: Coverage
    tokens: tuple[int, ...]
    state: bytes


def identity_of(model: Path, header_bytes: int, kv_type: str, llama_version: str) -> str:
    """A digest of all that keys and values depend on: the model's weights, the cache's format, and llama.cpp."""
    digest = hashlib.sha256(f"{_FORMAT} {kv_type} {llama_version} {model.stat().st_size} ".encode())
    with model.open("rb") as file:
        digest.update(file.read(header_bytes))
        size = model.stat().st_size
        for sample in range(_N_SAMPLES):
            file.seek(header_bytes + (size - header_bytes) * sample // _N_SAMPLES)
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


class PrefixStore:
    """The prefixes of one model in one folder."""

    def __init__(self, folder: Path, identity: str, max_bytes: int = _MAX_BYTES) -> None:
        """Use ``folder``, and make it if it is missing.

        Raises:
            OSError: the folder cannot be made.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._identity = identity
        self._max_bytes = max_bytes

    def has(self, coverage: Coverage, tokens: tuple[int, ...]) -> bool:
        """Whether there is a file for these tokens under these blends."""
        return self._path(coverage, tokens).exists()

    def save(self, prefix: SavedPrefix) -> None:
        """Write a prefix, completely or not at all; an error of the disk is logged and has no other effect."""
        body = array("i", prefix.tokens).tobytes() + prefix.state
        line = json.dumps(
            {
                "identity": self._identity,
                "blend": [[member.digest, member.scale] for member in prefix.coverage.blend.members],
                "start": prefix.coverage.start,
                "n_tokens": len(prefix.tokens),
                "sha256": hashlib.sha256(body).hexdigest(),
            }
        )
        content = line.encode("ascii") + b"\n" + body
        if len(content) > self._max_bytes:
            return
        try:
            self._make_room(len(content))
            with whole_file(self._path(prefix.coverage, prefix.tokens)) as file:
                file.write(content)
        except (OSError, OutputProblem) as error:
            _LOG.warning("a prefix could not be kept in %s: %s", self._folder, error)

    def load(self) -> Iterator[SavedPrefix]:
        """The prefixes of this model, most recently used first. Other models' files stay; broken files are deleted."""
        for path in self._files():
            try:
                prefix = self._read(path)
            except OSError as error:
                _LOG.warning("leaving %s alone: %s", path, error.strerror)
                continue
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
                _LOG.warning("deleting %s: %s", path, error)
                with contextlib.suppress(OSError):
                    path.unlink()
                continue
            if prefix is not None:
                yield prefix

    def touch(self, coverage: Coverage, tokens: tuple[int, ...]) -> None:
        """Note that a prefix was used now."""
        with contextlib.suppress(OSError):
            os.utime(self._path(coverage, tokens))

    def _path(self, coverage: Coverage, tokens: tuple[int, ...]) -> Path:
        key = hashlib.sha256(self._identity.encode())
        key.update(f" {coverage.start}".encode())
        for member in coverage.blend.members:
            key.update(f" {member.digest} {member.scale!r}".encode())
        key.update(array("i", tokens).tobytes())
        return self._folder / (key.hexdigest()[:40] + _SUFFIX)

    def _read(self, path: Path) -> SavedPrefix | None:
        """The prefix in a file, or None if the file belongs to another model."""
        with path.open("rb") as file:
            fields = json.loads(file.readline(_MAX_LINE_BYTES))
            if fields["identity"] != self._identity:
                return None
            body = file.read()
        if hashlib.sha256(body).hexdigest() != fields["sha256"]:
            raise ValueError("its digest is wrong")
        tokens = array("i")
        n_bytes = int(fields["n_tokens"]) * tokens.itemsize
        tokens.frombytes(body[:n_bytes])
        blend = Blend(tuple(BlendMember(str(digest), float(scale)) for digest, scale in fields["blend"]))
        coverage = Coverage(blend, int(fields["start"]))
        if path != self._path(coverage, tuple(tokens)):
            raise ValueError("its name does not follow from its content")
        return SavedPrefix(coverage, tuple(tokens), body[n_bytes:])

    def _make_room(self, n_bytes: int) -> None:
        for path in self._files():
            n_bytes += path.stat().st_size
            if n_bytes > self._max_bytes:
                path.unlink()
        for left_over in self._folder.glob("*.part"):
            left_over.unlink()

    def _files(self) -> list[Path]:
        """The regular files that may be prefixes, last used first. Other programs may add or delete files meanwhile."""
        used_at: dict[Path, float] = {}
        for path in self._folder.glob(f"*{_SUFFIX}"):
            with contextlib.suppress(OSError):
                status = path.stat()
                if stat.S_ISREG(status.st_mode):
                    used_at[path] = status.st_mtime
        return sorted(used_at, key=lambda path: used_at[path], reverse=True)
