"""Writes GGUF files, whole or not at all (see `files.whole_file`).

Source of the layout: llama.cpp ggml/include/gguf.h.
"""

import hashlib
import math
import shutil
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from convert.errors import OutputProblem
from convert.files import whole_file
from convert.gguf.header import DEFAULT_ALIGNMENT, MAGIC, SCALARS, ValueType
from convert.gguf.types import GgmlType

VERSION: Final = 3
_SPARE_BYTES: Final = 1 << 20

_ITEM_TYPES: Final = {"float32": ValueType.FLOAT32, "int32": ValueType.INT32, "uint32": ValueType.UINT32}

Scalar = str | int | float | bool
Array = Sequence[bytes] | npt.NDArray[np.float32] | npt.NDArray[np.int32] | npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One metadata entry; an ARRAY holds strings (as UTF-8), float32, int32 or uint32 by what `value` is."""

    key: str
    type: ValueType
    value: Scalar | Array


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """One tensor to be written: `shape` has rows first; `chunks` makes its bytes, in order, when asked."""

    name: str
    type: GgmlType
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[npt.NDArray[np.uint8]]]

    @property
    def n_values(self) -> int:
        """How many weights the tensor has."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """The bytes of the tensor's data, without padding."""
        return math.prod(self.shape[:-1]) * self.type.row_size_bytes(self.shape[-1])


@dataclass(frozen=True, slots=True)
class FilePlan:
    """Everything about a GGUF file but its bytes; `warnings` are for the user."""

    metadata: Sequence[KeyValue]
    tensors: Sequence[TensorPlan]
    warnings: tuple[str, ...] = ()

    @property
    def tensor_bytes(self) -> int:
        """The bytes of all tensors, without padding."""
        return sum(tensor.size_bytes for tensor in self.tensors)


def check_output(path: Path, size_bytes: int, *, force: bool) -> None:
    """Check that a file of this size can be written, before anything is.

    Raises:
        OutputProblem: The file exists and `force` is not set, the directory does not exist, or the disk is
            too full.
    """
    if path.is_dir():
        raise OutputProblem(f"{path}: a directory; name the file to write")
    if path.exists() and not force:
        raise OutputProblem(f"{path}: exists already; choose another name or add --force")
    if not path.parent.is_dir():
        raise OutputProblem(f"{path.parent}: no such directory")
    free_bytes = shutil.disk_usage(path.parent).free
    if free_bytes < size_bytes + _SPARE_BYTES:
        raise OutputProblem(
            f"{path}: {size_bytes} bytes are needed and {_SPARE_BYTES} are kept free, but only {free_bytes} are free "
            "on that disk"
        )


def encode_header(metadata: Sequence[KeyValue], tensors: Sequence[TensorPlan]) -> bytes:
    """Return all bytes of a GGUF file that come before the first tensor, padding included."""
    out = bytearray(MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(metadata)))
    for entry in metadata:
        out += _text(entry.key.encode()) + struct.pack("<I", entry.type) + _value(entry)
    offset = 0
    for tensor in tensors:
        out += _text(tensor.name.encode()) + struct.pack("<I", len(tensor.shape))
        out += struct.pack(f"<{len(tensor.shape)}Q", *reversed(tensor.shape))
        out += struct.pack("<IQ", tensor.type, offset)
        offset += _padded(tensor.size_bytes)
    out += bytes(_padded(len(out)) - len(out))
    return bytes(out)


def write_gguf(
    path: Path,
    plan: FilePlan,
    *,
    force: bool = False,
    progress: Callable[[int], None] = lambda _: None,
    check: Callable[[Path], object] = lambda _: None,
) -> str:
    """Write a GGUF file at `path`, asking each tensor for its bytes in turn.

    Args:
        path: The file to make.
        plan: What to write.
        force: Replace an existing file.
        progress: Called with the number of bytes just written.
        check: Called with the path of the whole file before it gets its name; raises to refuse it.

    Returns:
        The SHA-256 of the file as hexadecimal text.

    Raises:
        OutputProblem: See `check_output`; or the disk filled up, or refused, while writing.
    """
    header = encode_header(plan.metadata, plan.tensors)
    check_output(path, len(header) + sum(_padded(tensor.size_bytes) for tensor in plan.tensors), force=force)
    digest = hashlib.sha256(header)
    with whole_file(path, check) as file:
        file.write(header)
        for tensor in plan.tensors:
            n_bytes = 0
            for chunk in tensor.chunks():
                file.write(chunk.data)
                digest.update(chunk.data)
                n_bytes += chunk.size
                progress(chunk.size)
            if n_bytes != tensor.size_bytes:
                raise OutputProblem(f"{path}: {tensor.name!r} gave {n_bytes} bytes instead of {tensor.size_bytes}")
            padding = bytes(_padded(n_bytes) - n_bytes)
            file.write(padding)
            digest.update(padding)
    return digest.hexdigest()


def _padded(n_bytes: int) -> int:
    return -(-n_bytes // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT


def _text(raw: bytes) -> bytes:
    return struct.pack("<Q", len(raw)) + raw


def _value(entry: KeyValue) -> bytes:
    value = entry.value
    if entry.type is ValueType.ARRAY:
        assert not isinstance(value, (str, int, float))
        return _array(value)
    if isinstance(value, str):
        return _text(value.encode(errors="replace"))  # a folder's name may hold bytes that are not text
    return SCALARS[entry.type].pack(value)


def _array(items: Array) -> bytes:
    if isinstance(items, np.ndarray):
        return struct.pack("<IQ", _ITEM_TYPES[items.dtype.name], len(items)) + items.tobytes()
    return struct.pack("<IQ", ValueType.STRING, len(items)) + b"".join(map(_text, items))
