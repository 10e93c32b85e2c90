"""Reads the header of an untrusted safetensors file, and checks it against the file.

The memory is bounded whatever the header says. The tensors' values are not read.

Source of the format: the safetensors project's README, "Format".
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, Final, TypeGuard

from convert.errors import MalformedFile, MalformedSafetensors
from convert.files import parse_json_object, read_at, refuse_other_format
from convert.formats import START_BYTES

MAX_HEADER_BYTES: Final = 4 << 20  # 164 to 254 tensors take 30 KB; the format's own limit is 100 MB
VALUE_BYTES: Final = MappingProxyType(
    {
        "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1,
        "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """Where one tensor lies: `offset` counts from the start of the file; `shape` has rows first."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


def read_tensor_table(file: BinaryIO, path: Path) -> Mapping[str, SourceTensor]:
    """Read which tensors an open safetensors file holds; `path` is named in errors.

    Raises:
        LfsPointer, UnsafeFile: It is a git-LFS pointer, or a pickle.
        MalformedSafetensors: It is something else, or the header lies about itself or the file.
    """
    size_bytes = os.fstat(file.fileno()).st_size
    start = read_at(file, 0, min(size_bytes, START_BYTES))
    if start[8:9] != b"{":
        refuse_other_format(path, start, "a safetensors file", MalformedSafetensors)
        raise MalformedSafetensors(f"{path}: not a safetensors file: its ninth byte does not open a JSON object")
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
    notes = entries.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
        raise MalformedSafetensors(f"{path}: __metadata__ must be an object of texts")
    tensors = {name: _entry(path, name, entry, 8 + header_bytes) for name, entry in entries.items()}
    _check_ranges(path, tensors, 8 + header_bytes, size_bytes)
    return MappingProxyType(tensors)


def _entry(path: Path, name: str, entry: object, data_start: int) -> SourceTensor:
    if not isinstance(entry, dict):
        raise MalformedSafetensors(f"{path}: tensor {name!r} is not described by an object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in VALUE_BYTES:
        raise MalformedSafetensors(f"{path}: tensor {name!r} has the unknown type {dtype!r}")
    if not _are_counts(shape) or len(shape) > 8:
        raise MalformedSafetensors(f"{path}: tensor {name!r} has the impossible shape {shape!r}")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise MalformedSafetensors(f"{path}: tensor {name!r} has the impossible data_offsets {offsets!r}")
    n_bytes = math.prod(shape) * VALUE_BYTES[dtype]
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
    """Check that the tensors fill the rest of the file, one after the other: the format has no gaps to hide in."""
    end, before = data_start, ""
    for tensor in sorted(tensors.values(), key=lambda one: (one.offset, one.size_bytes)):
        if tensor.offset < end:
            raise MalformedSafetensors(f"{path}: tensors {before!r} and {tensor.name!r} overlap")
        gap = tensor.offset - end
        end, before = tensor.offset + tensor.size_bytes, tensor.name
        if end > size_bytes:
            raise MalformedSafetensors(
                f"{path}: {tensor.name!r} ends at byte {end}, but the file has only {size_bytes}"
            )
        if gap:
            raise MalformedSafetensors(f"{path}: {gap} bytes before {tensor.name!r} belong to no tensor")
    if end != size_bytes:
        raise MalformedSafetensors(f"{path}: {size_bytes - end} bytes at the end belong to no tensor")
