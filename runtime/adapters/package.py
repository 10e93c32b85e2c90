"""What an upload holds: a GGUF adapter, or the files of a PEFT or MLX folder, loose or in a tar."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, Final

from runtime.adapters.disk import storage_errors
from runtime.adapters.folder import CONFIG_NAME, MLX_WEIGHTS, PEFT_WEIGHTS
from runtime.adapters.intake import AdapterFiles
from runtime.errors import InvalidAdapter

_GGUF_MAGIC: Final = b"GGUF"
_FOLDER_FILES: Final = (CONFIG_NAME, PEFT_WEIGHTS, MLX_WEIGHTS)
_BLOCK_BYTES: Final = 512
_MAX_MEMBERS: Final = 1000
_MAX_SHOWN: Final = 200
_HINT: Final = f"send a GGUF file, a tar (tar -C FOLDER -cf - {CONFIG_NAME} {PEFT_WEIGHTS}), or a form with both files"


def unpack(files: Mapping[str, Path], place: Path) -> AdapterFiles:
    """The adapter in files that were received; those of a tar are written to ``place``.

    Args:
        files: where each file lies, by the name that the client gave it; of a single file the name does not matter.
        place: an empty folder.

    Raises:
        InvalidAdapter: they are not those of one adapter.
        StorageError: a file of the tar cannot be written.
    """
    if len(files) == 1:
        (path,) = files.values()
        with path.open("rb") as file:
            if file.read(len(_GGUF_MAGIC)) == _GGUF_MAGIC:
                return AdapterFiles(path, (path,))
            _untar(file, path.stat().st_size, place)
    else:
        for name, path in files.items():
            if name in _FOLDER_FILES:
                with storage_errors():
                    path.replace(place / name)
    return _folder(place)


def _folder(place: Path) -> AdapterFiles:
    found = tuple(place / name for name in _FOLDER_FILES if (place / name).exists())
    if len(found) != 2 or found[0].name != CONFIG_NAME:
        names = ", ".join(path.name for path in found) or "none of them"
        raise InvalidAdapter(
            f"an adapter is {CONFIG_NAME} with either {PEFT_WEIGHTS} or {MLX_WEIGHTS}; this is {names}; {_HINT}"
        )
    return AdapterFiles(place, found)


def _untar(file: BinaryIO, size_bytes: int, place: Path) -> None:
    """Write the files that count, wherever in the tar they lie; headers are read a block at a time.

    The library's own reader would read a header's extension whole, however long it says it is.
    """
    offset = 0
    for _ in range(_MAX_MEMBERS):
        file.seek(offset)
        block = file.read(_BLOCK_BYTES)
        if not block.strip(b"\0"):  # the end, or the padding before it
            return
        try:
            member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            raise InvalidAdapter(f"neither a GGUF file nor an uncompressed tar; {_HINT}") from None
        offset += _BLOCK_BYTES
        if not 0 <= member.size <= size_bytes - offset:
            raise InvalidAdapter(f"the tar ends inside {member.name[:_MAX_SHOWN]!r}")
        name = member.name.rpartition("/")[2]
        if member.isreg() and name in _FOLDER_FILES:
            if (place / name).exists():
                raise InvalidAdapter(f"the tar holds {name} twice; send one adapter")
            _write(file, member.size, place / name)
        offset += -(-member.size // _BLOCK_BYTES) * _BLOCK_BYTES
    raise InvalidAdapter(f"the tar holds over {_MAX_MEMBERS} entries; send the adapter's two files alone")


def _write(file: BinaryIO, n_bytes: int, path: Path) -> None:
    with storage_errors(), path.open("wb") as output:
        while n_bytes > 0 and (piece := file.read(min(n_bytes, 1 << 20))):
            output.write(piece)
            n_bytes -= len(piece)


def copy_from(folder: Path, path: str, place: Path) -> dict[str, Path]:
    """Copies of the files at ``path`` below ``folder``, by their names; they lie in ``place``.

    Raises:
        InvalidAdapter: there are none, or the path leads out of the folder, links followed.
        StorageError: they cannot be copied.
    """
    root = folder.resolve()
    try:
        wanted = (root / path).resolve()
        exists = wanted.exists()
    except (OSError, ValueError):
        exists = False
    if not exists or not wanted.is_relative_to(root) or wanted == root:
        raise InvalidAdapter(f"there is no {path[:_MAX_SHOWN]!r} below the adapters folder")
    files = [wanted / name for name in _FOLDER_FILES] if wanted.is_dir() else [wanted]
    copied = {}
    for index, one in enumerate(files):
        if one.is_file() and one.resolve().is_relative_to(root):
            with storage_errors():
                copied[one.name] = Path(shutil.copyfile(one, place / f"{index}.copy"))
    if not copied:
        raise InvalidAdapter(f"{path[:_MAX_SHOWN]!r} holds no adapter; {_HINT}")
    return copied
