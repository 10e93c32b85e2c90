"""Reads safetensors files that a stranger made: header checked against the file, tensors read in row chunks.

Bounded memory whatever the header says; nothing is memory-mapped, so a file cut short while we read is an
error and not a crash.

Source of the format: the safetensors project's README, "Format".
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, Final, Self, TypeGuard

import numpy as np
import numpy.typing as npt

from convert.errors import BadValue, MalformedFile, MalformedSafetensors, QuantizedSource
from convert.files import open_regular, parse_json_object, read_at, refuse_lfs_pointer

MAX_HEADER_BYTES: Final = 4 << 20  # 164 to 254 tensors take 30 KB; the format's own limit is 100 MB
_SIZES: Final = MappingProxyType(
    {
        "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1,
        "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    }
)  # fmt: skip
FLOAT_TYPES: Final = frozenset({"F32", "F16", "BF16"})

F32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """Where one tensor lies: `offset` counts from the start of the file; `shape` has rows first."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


class SafetensorsFile:
    """One open safetensors file. Reading is positional, so several threads may read at once."""

    def __init__(self, path: Path) -> None:
        """Open the file and check its header.

        Raises:
            MissingFile, NotARegularFile, LfsPointer: As `files.open_regular` and `files.refuse_lfs_pointer`.
            MalformedSafetensors: The header lies about itself or the file.
        """
        self.path = path
        self._file: BinaryIO = open_regular(path)
        try:
            self.metadata, self.tensors = _read_header(self._file, path)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; the tensors cannot be read any more."""
        self._file.close()

    def read_rows(self, name: str, first_row: int, n_rows: int) -> F32Array:
        """Read rows of a tensor as float32, exactly.

        Args:
            name: One of `tensors`.
            first_row: Index of the first row; a one-dimensional tensor is a single row.
            n_rows: How many.

        Returns:
            (n_rows, n_columns) float32.

        Raises:
            QuantizedSource: The tensor is not F32, F16 or BF16.
            MalformedSafetensors: The file became shorter.
            BadValue: A value is NaN or infinite.
        """
        tensor = self.tensors[name]
        if tensor.dtype not in FLOAT_TYPES:
            raise QuantizedSource(
                f"{self.path}: {name!r} has type {tensor.dtype}; give the original F32, F16 or BF16 weights"
            )
        n_columns = tensor.shape[-1] if tensor.shape else 1
        row_bytes = n_columns * _SIZES[tensor.dtype]
        try:
            raw = read_at(self._file, tensor.offset + first_row * row_bytes, n_rows * row_bytes)
        except MalformedFile as error:
            raise MalformedSafetensors(str(error)) from error
        rows = to_float32(raw, tensor.dtype).reshape(n_rows, n_columns)
        if not np.isfinite(rows).all():
            raise BadValue(f"{self.path}: {name!r} holds NaN or infinity")
        return rows

    def read(self, name: str) -> F32Array:
        """Read a whole tensor as float32, in its own shape. For adapters and norms; raises as `read_rows`."""
        shape = self.tensors[name].shape
        n_rows = math.prod(shape[:-1])
        return self.read_rows(name, 0, n_rows).reshape(shape)


def to_float32(raw: bytes, dtype: str) -> F32Array:
    """Decode little-endian F32, F16 or BF16 bytes; exact for all three."""
    if dtype == "BF16":
        return (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
    if dtype == "F16":
        return np.frombuffer(raw, np.float16).astype(np.float32)
    return np.frombuffer(raw, np.float32)


def _read_header(file: BinaryIO, path: Path) -> tuple[Mapping[str, str], Mapping[str, SourceTensor]]:
    size_bytes = os.fstat(file.fileno()).st_size
    start = read_at(file, 0, min(size_bytes, 64))
    refuse_lfs_pointer(path, start)
    if size_bytes < 8:
        raise MalformedSafetensors(f"{path}: {size_bytes} bytes are too few for a safetensors file")
    header_bytes = int.from_bytes(start[:8], "little")
    if header_bytes > min(MAX_HEADER_BYTES, size_bytes - 8):
        raise MalformedSafetensors(
            f"{path}: claims a header of {header_bytes} bytes, but at most "
            f"{min(MAX_HEADER_BYTES, size_bytes - 8)} are possible"
        )
    try:
        entries = parse_json_object(read_at(file, 8, header_bytes), path)
    except MalformedFile as error:
        raise MalformedSafetensors(str(error)) from error
    raw_metadata = entries.pop("__metadata__", {})
    metadata = raw_metadata if isinstance(raw_metadata, dict) else {}
    tensors = {name: _entry(path, name, entry, 8 + header_bytes) for name, entry in entries.items()}
    _check_ranges(path, tensors, 8 + header_bytes, size_bytes)
    return MappingProxyType({k: v for k, v in metadata.items() if isinstance(v, str)}), MappingProxyType(tensors)


def _entry(path: Path, name: str, entry: object, data_start: int) -> SourceTensor:
    if not isinstance(entry, dict):
        raise MalformedSafetensors(f"{path}: tensor {name!r} is not described by an object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _SIZES:
        raise MalformedSafetensors(f"{path}: tensor {name!r} has the unknown type {dtype!r}")
    if not _are_counts(shape) or len(shape) > 8:
        raise MalformedSafetensors(f"{path}: tensor {name!r} has the impossible shape {shape!r}")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise MalformedSafetensors(f"{path}: tensor {name!r} has the impossible data_offsets {offsets!r}")
    n_bytes = math.prod(shape) * _SIZES[dtype]
    if offsets[1] - offsets[0] != n_bytes:
        raise MalformedSafetensors(
            f"{path}: tensor {name!r} of {dtype} {shape} needs {n_bytes} bytes, not {offsets[1] - offsets[0]}"
        )
    return SourceTensor(name, dtype, tuple(shape), data_start + offsets[0], n_bytes)


def _are_counts(value: object) -> TypeGuard[list[int]]:
    if not isinstance(value, list):
        return False
    return all(type(item) is int and 0 <= item < 1 << 48 for item in value)


def _check_ranges(path: Path, tensors: Mapping[str, SourceTensor], data_start: int, size_bytes: int) -> None:
    end, before = data_start, ""
    for tensor in sorted(tensors.values(), key=lambda one: (one.offset, one.size_bytes)):
        if tensor.offset < end:
            raise MalformedSafetensors(f"{path}: tensors {before!r} and {tensor.name!r} overlap")
        end, before = tensor.offset + tensor.size_bytes, tensor.name
        if end > size_bytes:
            raise MalformedSafetensors(
                f"{path}: {tensor.name!r} ends at byte {end}, but the file has only {size_bytes}"
            )
