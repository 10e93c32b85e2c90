"""Opening files that strangers made: regular files only, with size limits, JSON without surprises.

Knows nothing of checkpoints or GGUF.
"""

import errno
import json
import os
import re
import stat
from pathlib import Path
from typing import BinaryIO, Final, NoReturn

from convert.errors import LfsPointer, MalformedFile, MalformedJson, MissingFile, NotARegularFile, UnsafeFile

_LFS_MAGIC: Final = b"version https://git-lfs"
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")


def open_regular(path: Path) -> BinaryIO:
    """Open `path` for reading, unbuffered, if it is a regular file or a link to one.

    The kind is checked on the open descriptor, and the open itself does not block on a FIFO.

    Raises:
        MissingFile: There is no such file, or it may not be read.
        NotARegularFile: It is a directory, FIFO, socket or device.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENXIO, errno.ENODEV):
            raise NotARegularFile(f"{path}: not a regular file") from error
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise MissingFile(f"{path}: cannot be opened: {reason}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotARegularFile(f"{path}: not a regular file")
    return os.fdopen(descriptor, "rb", buffering=0)


def read_at(file: BinaryIO, offset: int, n_bytes: int) -> bytes:
    """Read exactly `n_bytes` at `offset`.

    Raises:
        MalformedFile: The file ends before that.
    """
    pieces = []
    while n_bytes > 0:
        piece = os.pread(file.fileno(), min(n_bytes, 1 << 30), offset)
        if not piece:
            raise MalformedFile(f"{file.name}: the file ends at byte {offset}, {n_bytes} bytes too early")
        pieces.append(piece)
        offset += len(piece)
        n_bytes -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def read_small(path: Path, limit_bytes: int) -> bytes:
    """Read a whole file of at most `limit_bytes` bytes.

    Raises:
        MissingFile, NotARegularFile: As `open_regular`.
        MalformedFile: The file is larger than the limit.
        LfsPointer: It is a git-LFS pointer.
    """
    with open_regular(path) as file:
        size_bytes = os.fstat(file.fileno()).st_size
        if size_bytes > limit_bytes:
            raise MalformedFile(f"{path}: {size_bytes} bytes, but at most {limit_bytes} are read of such a file")
        content = read_at(file, 0, size_bytes)
    refuse_lfs_pointer(path, content)
    return content


def refuse_lfs_pointer(path: Path, start: bytes) -> None:
    """Refuse a file that starts like a git-LFS pointer.

    Raises:
        LfsPointer: It does.
    """
    if start.startswith(_LFS_MAGIC):
        raise LfsPointer(f"{path}: a git-LFS pointer, not the file itself; fetch it with `git lfs pull`")


def refuse_pickle(directory: Path, names: tuple[str, ...], wanted: str) -> None:
    """Refuse a directory whose weights are only there as a pickle.

    Raises:
        UnsafeFile: One of the patterns `names` matches a file of `directory`.
    """
    for pattern in names:
        for path in sorted(directory.glob(pattern)):
            raise UnsafeFile(f"{path}: a pickle can run any program and is never opened; save it as {wanted}")


def read_json_object(path: Path, limit_bytes: int) -> dict[str, object]:
    """Read a JSON file whose top is an object.

    Raises:
        MissingFile, NotARegularFile, MalformedFile, LfsPointer: As `read_small`.
        MalformedJson: Not JSON, a key twice in one object, nested too deeply, a lone surrogate, or not an object.
    """
    return parse_json_object(read_small(path, limit_bytes), path)


def parse_json_object(content: bytes, path: Path) -> dict[str, object]:
    """Parse UTF-8 JSON whose top is an object, with a byte order mark or without; `path` is named in errors.

    Raises:
        MalformedJson: As `read_json_object`.
    """
    try:
        value = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
        if _SURROGATE.search(content):  # a lone one is no text: it could not be written to any file
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError as error:
        raise MalformedJson(f"{path}: nested too deeply") from error
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, our own, and integers of absurd length
        raise MalformedJson(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise MalformedJson(f"{path}: a JSON object is needed, but this is a {type(value).__name__}")
    return value


def record_path(output: Path) -> Path:
    """Return the path of the record that a conversion writes beside `output`."""
    return output.parent / f"{output.name}.json"


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {twice[:80]!r} occurs twice")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
