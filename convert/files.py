"""Opens untrusted files, and writes files whole or not at all.

What is read is a regular file, within size limits, and JSON without surprises. What is written appears under its name
only when every byte is on the disk. Where the system has files without a name (Linux), even a killed process leaves
nothing behind; elsewhere a `.part` file may remain, which the next run replaces.

It does not know checkpoints or GGUF; what a file is instead of the expected one is said by `formats`.
"""

import contextlib
import errno
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final, NoReturn

from convert.errors import (
    LfsPointer,
    MalformedFile,
    MalformedJson,
    MissingFile,
    NotARegularFile,
    OutputProblem,
    UnsafeFile,
)
from convert.formats import HUB_REMEDY, LFS_MAGIC, PICKLE, START_BYTES, describe, looks_like_hub_name

_REFUSAL_KEYS: Final = frozenset({"error", "message", "detail", "status", "statusCode"})  # of a server's JSON
_NEW_FILE: Final = os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC
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
        if isinstance(error, FileNotFoundError):
            raise missing(path, "cannot be opened: no such file") from error
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
    if content.startswith(LFS_MAGIC):
        refuse_other_format(path, content, "the file itself")
    return content


def missing(path: Path, otherwise: str) -> MissingFile:
    """Return the error for a path that does not exist; the message recognises a name on the Hugging Face Hub."""
    name = str(path)
    if looks_like_hub_name(name) and not path.parent.exists():
        return MissingFile(f"{path}: {HUB_REMEDY.format(name, path.name)}")
    return MissingFile(f"{path}: {otherwise}")


def describe_file(path: Path) -> str | None:
    """Say what a file is by its first bytes, and what to do with it; None if that is not known.

    Raises:
        MissingFile, NotARegularFile: As `open_regular`.
    """
    with open_regular(path) as file:
        return describe(read_at(file, 0, min(START_BYTES, os.fstat(file.fileno()).st_size)))


def refuse_other_format(path: Path, start: bytes, wanted: str, kind: type[MalformedFile] = MalformedFile) -> None:
    """Refuse a file that is known to be of another format than `wanted`; do nothing if it is not known.

    Args:
        path: What errors name.
        start: The first `formats.START_BYTES` bytes of the file, or all of it.
        wanted: What it should be, as in "not a GGUF file".
        kind: The class of the error.

    Raises:
        LfsPointer: It is a git-LFS pointer.
        UnsafeFile: It is a pickle.
        MalformedFile: It is something else; of class `kind`.
    """
    what = describe(start)
    if what is None:
        return
    if start.startswith(LFS_MAGIC):
        raise LfsPointer(f"{path}: {what}")
    if what == PICKLE:
        raise UnsafeFile(f"{path}: {what}")
    raise kind(f"{path}: not {wanted}, but {what}")


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
        if _SURROGATE.search(content):  # a lone surrogate cannot be written to any file
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError as error:
        raise MalformedJson(f"{path}: nested too deeply") from error
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, our own, and integers of absurd length
        if content.lstrip()[:1] != b"{":
            refuse_other_format(path, content[:START_BYTES], "JSON", MalformedJson)
        raise MalformedJson(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise MalformedJson(f"{path}: a JSON object is needed, but this is a {type(value).__name__}")
    if value and value.keys() <= _REFUSAL_KEYS:
        refuse_other_format(path, content[:START_BYTES], "this file", MalformedJson)
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


@contextlib.contextmanager
def whole_file(path: Path, check: Callable[[Path], object] = lambda _: None) -> Iterator[BinaryIO]:
    """Open a file that appears at `path` only if the block ends without an exception, and then all of it.

    Args:
        path: The file to make.
        check: Called with the path of the whole file before it gets its name; raises to refuse it.

    Raises:
        OutputProblem: The system refuses to write, for want of space or permission.
    """
    part = path.name + ".part"
    try:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        with contextlib.ExitStack() as cleaning:
            cleaning.callback(os.close, directory)
            descriptor = _open_nameless(path.parent)
            is_nameless = descriptor is not None
            if descriptor is None:
                descriptor = os.open(part, _NEW_FILE, 0o666, dir_fd=directory)
            with os.fdopen(descriptor, "wb") as file, contextlib.ExitStack() as failing:
                failing.callback(_remove, part, directory)
                yield file
                file.flush()
                os.fsync(descriptor)
                if is_nameless:
                    _remove(part, directory)
                    # Only linkat follows /proc's link to the open file, and only a dir_fd makes Python use
                    # it.
                    os.link(f"/proc/self/fd/{descriptor}", part, dst_dir_fd=directory, follow_symlinks=True)
                check(path.parent / part)
                os.replace(part, path.name, src_dir_fd=directory, dst_dir_fd=directory)
                failing.pop_all()
            os.fsync(directory)
    except OSError as error:
        raise OutputProblem(f"{path}: cannot be written: {error.strerror or error}") from error


def _open_nameless(directory: Path) -> int | None:
    """Open a new file that has no name yet; None where the system or file system has no such thing."""
    flag = getattr(os, "O_TMPFILE", None)
    if flag is None or not Path("/proc/self/fd").is_dir():
        return None
    try:
        return os.open(directory, flag | os.O_WRONLY | os.O_CLOEXEC, 0o666)
    except OSError:
        return None


def _remove(name: str, directory: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)
