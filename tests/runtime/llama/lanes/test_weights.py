"""An open adapter file is read under its own digest only, whatever is done to the file."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from convert.gguf.header import GgufHeader, read_header
from runtime.errors import InvalidAdapter
from runtime.llama.lanes.weights import AdapterFile

HOUR_NS = 3600 * 10**9


@pytest.fixture
def base(tiny_model: Path) -> GgufHeader:
    """The header of the tiny Gemma."""
    return read_header(tiny_model)


@pytest.fixture
def path(tiny_adapters: Path, tmp_path: Path) -> Path:
    """A copy of the pirate adapter, written an hour ago."""
    copy = tmp_path / "voice.gguf"
    shutil.copyfile(tiny_adapters / "pirate.gguf", copy)
    _age(copy)
    return copy


def _age(path: Path) -> None:
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - HOUR_NS))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _overwrite(path: Path, content: bytes) -> None:
    """Write into the file as `cp` does: the inode stays."""
    inode = path.stat().st_ino
    path.write_bytes(content)
    assert path.stat().st_ino == inode


def test_an_untouched_file_is_digested_once(path: Path, base: GgufHeader, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second check trusts the file system, since the file was written long before it was digested."""
    file = AdapterFile(path, base, _digest(path))
    file.verify()
    monkeypatch.setattr(AdapterFile, "_digest_of_content", lambda _: pytest.fail("digested twice"))
    file.verify()
    file.close()


def test_another_adapter_of_the_same_size_is_refused(path: Path, base: GgufHeader, tiny_adapters: Path) -> None:
    """New weights of the same shapes, written in place, have the old size and are found by time and digest."""
    file = AdapterFile(path, base, _digest(path))
    file.verify()
    other = (tiny_adapters / "shout.gguf").read_bytes()
    _overwrite(path, other[: path.stat().st_size].ljust(path.stat().st_size, b"\0"))
    with pytest.raises(InvalidAdapter, match=r"adapter file voice\.gguf was overwritten after"):
        file.verify()
    file.close()


def test_a_change_before_the_first_use_is_refused(path: Path, base: GgufHeader, tiny_adapters: Path) -> None:
    """A file that was overwritten between its digest and the engine's first read is not read at wrong offsets."""
    digest = _digest(path)
    _overwrite(path, (tiny_adapters / "shout.gguf").read_bytes())
    _age(path)
    file = AdapterFile(path, base, digest)
    with pytest.raises(InvalidAdapter, match="was overwritten after"):
        file.verify()
    file.close()


def test_a_write_within_the_clocks_tick_is_found(path: Path, base: GgufHeader) -> None:
    """A file that was written a moment before it was digested is digested again, since its time may stand still."""
    content = path.read_bytes()
    _overwrite(path, content)
    file = AdapterFile(path, base, _digest(path))
    file.verify()
    times = path.stat()
    _overwrite(path, content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(InvalidAdapter, match="was overwritten after"):
        file.verify()
    file.close()


def test_the_same_content_written_again_is_accepted(path: Path, base: GgufHeader) -> None:
    """A copy of the same file over itself changes its time and nothing else."""
    file = AdapterFile(path, base, _digest(path))
    file.verify()
    _overwrite(path, path.read_bytes())
    file.verify()
    file.close()


def test_a_file_renamed_over_the_path_leaves_the_open_one_alone(
    path: Path, base: GgufHeader, tiny_adapters: Path
) -> None:
    """Replacing by renaming keeps the old content readable under the old digest."""
    file = AdapterFile(path, base, _digest(path))
    shutil.copyfile(tiny_adapters / "shout.gguf", path.with_name("new"))
    path.with_name("new").replace(path)
    file.verify()
    file.close()


@pytest.mark.parametrize("content", [b"", b"GGUF", b"<!doctype html>"])
def test_a_refused_file_is_named_without_its_folder(content: bytes, path: Path, base: GgufHeader) -> None:
    """Clients see the message, so it holds the file's name and no path of the server."""
    path.write_bytes(content)
    with pytest.raises(InvalidAdapter, match=r"voice\.gguf") as caught:
        AdapterFile(path, base, _digest(path))
    assert "/" not in str(caught.value).replace("git lfs", "")
