"""Reads the header of an untrusted GGUF file: fast, in bounded memory, with every count and length checked.

Arrays (a vocabulary of 256,000 strings) are stepped over, not built. Counts and lengths are checked against
the bytes that are really there before anything is allocated. It does not know what a model or an
adapter is.

Source of the layout: llama.cpp ggml/include/gguf.h.
"""

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, Final

from convert.errors import MalformedFile, MalformedGguf
from convert.files import open_regular, read_at, refuse_other_format
from convert.formats import START_BYTES
from convert.gguf.types import GgmlType

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
DEFAULT_ALIGNMENT: Final = 32

# Limits far above any real file, so that a lie costs neither time nor memory.
MAX_HEADER_BYTES: Final = 128 << 20  # a 256k vocabulary with merges takes about 20 MiB
MAX_KEYS: Final = 4096
MAX_TENSORS: Final = 65_536
MAX_KEY_BYTES: Final = 65_535  # gguf.h: keys are at most 2^16 - 1 bytes
MAX_STRING_BYTES: Final = 16 << 20
MAX_STRINGS: Final = 1 << 21  # in one array; a vocabulary has 2^18, its merges twice that
MAX_KEPT_ITEMS: Final = 1024  # of an array of integers; the invocation tokens of an adapter are a few
MAX_TENSOR_NAME_BYTES: Final = 63  # ggml.h GGML_MAX_NAME 64, with the closing zero
MAX_DIMENSIONS: Final = 4  # ggml.h GGML_MAX_DIMS
MAX_VALUES: Final = 1 << 62
_WINDOW_BYTES: Final = 1 << 20


class ValueType(IntEnum):
    """The type of a metadata value, by the number that GGUF files carry."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


SCALARS: Final = MappingProxyType(
    {
        ValueType.UINT8: struct.Struct("<B"),
        ValueType.INT8: struct.Struct("<b"),
        ValueType.UINT16: struct.Struct("<H"),
        ValueType.INT16: struct.Struct("<h"),
        ValueType.UINT32: struct.Struct("<I"),
        ValueType.INT32: struct.Struct("<i"),
        ValueType.FLOAT32: struct.Struct("<f"),
        ValueType.BOOL: struct.Struct("<B"),
        ValueType.UINT64: struct.Struct("<Q"),
        ValueType.INT64: struct.Struct("<q"),
        ValueType.FLOAT64: struct.Struct("<d"),
    }
)
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class ArrayInfo:
    """A metadata array: its items' type, how many there are, and where in the file they start.

    `integers` holds the items of an array of at most `MAX_KEPT_ITEMS` UINT32; every other array is stepped over.
    """

    item_type: ValueType
    length: int
    offset: int
    integers: tuple[int, ...] = ()


Value = str | int | float | bool | ArrayInfo


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a GGUF file.

    `shape` is ggml's `ne`, fastest dimension first, without the trailing ones that were not written;
    `offset` counts from the start of the file.
    """

    name: str
    type: GgmlType
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """All that a GGUF file says before its tensor data, long arrays excepted."""

    path: Path
    version: int
    alignment: int
    size_bytes: int
    data_offset: int
    metadata: Mapping[str, Value]
    value_types: Mapping[str, ValueType]
    tensors: Mapping[str, TensorInfo]

    def tensor_types(self) -> tuple[str, ...]:
        """Return the names of the tensor types that occur, sorted."""
        return tuple(sorted({tensor.type.name for tensor in self.tensors.values()}))

    def string(self, key: str) -> str | None:
        """Return the value of `key` if it is a string, else None."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None

    def integer(self, key: str) -> int | None:
        """Return the value of `key` if it is an integer of any width, else None."""
        value = self.metadata.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def number(self, key: str) -> float | None:
        """Return the value of `key` if it is a float, else None."""
        value = self.metadata.get(key)
        return value if isinstance(value, float) else None


def read_header(path: Path) -> GgufHeader:
    """Read the header of the GGUF file at `path`.

    Raises:
        MissingFile: There is no such file, or it may not be read.
        NotARegularFile: It is a directory, FIFO, socket or device.
        LfsPointer: It is a git-LFS pointer.
        MalformedGguf: It is not a little-endian GGUF of version 2 or 3, it contradicts itself, a tensor lies
            outside the file or over another, or a count is beyond the limits of this module.
    """
    with open_regular(path) as file:
        return _read(_Cursor(file, path))


@dataclass(slots=True)
class _Cursor:
    """Walks forward over a file through one growing window; never holds more than the header's own length."""

    file: BinaryIO
    path: Path
    position: int = 0
    size_bytes: int = field(init=False)
    window: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self.size_bytes = os.fstat(self.file.fileno()).st_size

    def fail(self, reason: str) -> MalformedGguf:
        """Make the error for `reason` at this file."""
        return MalformedGguf(f"{self.path}: {reason}")

    def need(self, n_bytes: int, what: str) -> None:
        """Make sure that `n_bytes` from the position are in the window."""
        end = self.position + n_bytes
        if end > self.size_bytes:
            raise self.fail(f"the file ends inside {what}")
        if end > MAX_HEADER_BYTES:
            raise self.fail(f"the header is longer than {MAX_HEADER_BYTES} bytes")
        if end > len(self.window):
            grow_to = min(self.size_bytes, MAX_HEADER_BYTES, max(end, len(self.window) + _WINDOW_BYTES))
            try:
                self.window += read_at(self.file, len(self.window), grow_to - len(self.window))
            except MalformedFile as error:
                raise self.fail(f"the file ends inside {what}") from error

    def scalar(self, layout: struct.Struct, what: str) -> int | float:
        """Read one number."""
        self.need(layout.size, what)
        (value,) = layout.unpack_from(self.window, self.position)
        self.position += layout.size
        return value  # type: ignore[no-any-return]

    def count(self, limit: int, what: str) -> int:
        """Read a u64 that must not exceed `limit`."""
        value = int(self.scalar(_U64, what))
        if value > limit:
            raise self.fail(f"{what} is {value}, but at most {limit} is allowed")
        return value

    def text(self, limit_bytes: int, what: str) -> str:
        """Read a string of at most `limit_bytes` bytes."""
        n_bytes = self.count(limit_bytes, f"the length of {what}")
        self.need(n_bytes, what)
        raw = self.window[self.position : self.position + n_bytes]
        self.position += n_bytes
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.fail(f"{what} is not UTF-8") from error

    def skip_strings(self, n_strings: int, what: str) -> None:
        """Skip an array of strings. This loop is hot: a vocabulary has 256,000 of them."""
        position, window, length_of = self.position, self.window, int.from_bytes
        for _ in range(n_strings):
            start = position + 8
            end = start + length_of(window[position:start], "little")
            if end > len(window) or start > len(window):
                self.position = position
                self.need(8, what)
                self.position = start
                self.need(length_of(self.window[position:start], "little"), what)
                window = self.window
                end = start + length_of(window[position:start], "little")
            position = end
        self.position = position


def _read(cursor: _Cursor) -> GgufHeader:
    cursor.need(min(START_BYTES, cursor.size_bytes), "the first bytes")
    start = bytes(cursor.window[:START_BYTES])
    if not start.startswith(MAGIC):
        refuse_other_format(cursor.path, start, "a GGUF file", MalformedGguf)
        raise cursor.fail(f"not a GGUF file: it starts with {start[:4]!r} instead of {MAGIC!r}")
    cursor.position = len(MAGIC)
    version = int(cursor.scalar(_U32, "the version"))
    if version not in VERSIONS:
        swapped = " (byte-swapped; only little-endian files are read)" if version & 0xFFFF == 0 and version else ""
        raise cursor.fail(f"GGUF version {version}{swapped}, but only versions 2 and 3 are read")
    n_tensors = cursor.count(MAX_TENSORS, "the number of tensors")
    n_keys = cursor.count(MAX_KEYS, "the number of metadata keys")
    metadata, value_types = _read_metadata(cursor, n_keys)
    alignment = _alignment(cursor, metadata, value_types)
    raw_tensors = _read_tensor_table(cursor, n_tensors)
    data_offset = -(-cursor.position // alignment) * alignment
    return GgufHeader(
        path=cursor.path,
        version=version,
        alignment=alignment,
        size_bytes=cursor.size_bytes,
        data_offset=data_offset,
        metadata=MappingProxyType(metadata),
        value_types=MappingProxyType(value_types),
        tensors=MappingProxyType(_place(cursor, raw_tensors, data_offset, alignment)),
    )


def _read_metadata(cursor: _Cursor, n_keys: int) -> tuple[dict[str, Value], dict[str, ValueType]]:
    metadata: dict[str, Value] = {}
    value_types: dict[str, ValueType] = {}
    for _ in range(n_keys):
        key = cursor.text(MAX_KEY_BYTES, "a metadata key")
        if not key or key in metadata:
            raise cursor.fail(f"metadata key {key[:80]!r} is {'there twice' if key else 'empty'}")
        value_type = _value_type(cursor, key)
        value_types[key] = value_type
        metadata[key] = (
            _read_array(cursor, key) if value_type is ValueType.ARRAY else _read_scalar(cursor, key, value_type)
        )
    return metadata, value_types


def _value_type(cursor: _Cursor, key: str) -> ValueType:
    number = int(cursor.scalar(_U32, f"the type of {key!r}"))
    try:
        return ValueType(number)
    except ValueError as error:
        raise cursor.fail(f"metadata key {key[:80]!r} has the unknown type {number}") from error


def _read_scalar(cursor: _Cursor, key: str, value_type: ValueType) -> str | int | float | bool:
    what = f"the value of {key[:80]!r}"
    if value_type is ValueType.STRING:
        return cursor.text(MAX_STRING_BYTES, what)
    value = cursor.scalar(SCALARS[value_type], what)
    if value_type is ValueType.BOOL:
        if value not in (0, 1):
            raise cursor.fail(f"{what} is the bool {value}, but only 0 and 1 are bools")
        return bool(value)
    return value


def _read_array(cursor: _Cursor, key: str) -> ArrayInfo:
    what = f"the array {key[:80]!r}"
    item_type = _value_type(cursor, key)
    if item_type is ValueType.ARRAY:
        raise cursor.fail(f"{what} holds arrays, which GGUF readers do not accept")
    item_bytes = 8 if item_type is ValueType.STRING else SCALARS[item_type].size
    limit = MAX_STRINGS if item_type is ValueType.STRING else MAX_HEADER_BYTES // item_bytes
    length = cursor.count(limit, f"the length of {what}")
    offset = cursor.position
    if item_type is ValueType.STRING:
        cursor.skip_strings(length, what)
    else:
        cursor.need(length * item_bytes, what)
        cursor.position += length * item_bytes
    is_kept = item_type is ValueType.UINT32 and length <= MAX_KEPT_ITEMS
    integers = struct.unpack_from(f"<{length}I", cursor.window, offset) if is_kept else ()
    return ArrayInfo(item_type, length, offset, integers)


def _alignment(cursor: _Cursor, metadata: Mapping[str, Value], value_types: Mapping[str, ValueType]) -> int:
    key = "general.alignment"
    if key not in metadata:
        return DEFAULT_ALIGNMENT
    value = metadata[key]
    if value_types[key] is not ValueType.UINT32 or not isinstance(value, int) or not 1 <= value <= 1 << 16:
        raise cursor.fail(f"{key} must be a UINT32 from 1 to 65536")
    if value & (value - 1):
        raise cursor.fail(f"{key} is {value}, which is not a power of two")
    return value


def _read_tensor_table(cursor: _Cursor, n_tensors: int) -> dict[str, TensorInfo]:
    """Read the tensor table; offsets are still relative to the start of the data."""
    tensors: dict[str, TensorInfo] = {}
    for _ in range(n_tensors):
        name = cursor.text(MAX_TENSOR_NAME_BYTES, "a tensor's name")
        if not name or name in tensors:
            raise cursor.fail(f"tensor name {name!r} is {'there twice' if name else 'empty'}")
        n_dimensions = int(cursor.scalar(_U32, f"tensor {name!r}"))
        if not 1 <= n_dimensions <= MAX_DIMENSIONS:
            raise cursor.fail(f"tensor {name!r} has {n_dimensions} dimensions, but 1 to {MAX_DIMENSIONS} are allowed")
        shape = tuple(int(cursor.scalar(_U64, f"tensor {name!r}")) for _ in range(n_dimensions))
        number = int(cursor.scalar(_U32, f"tensor {name!r}"))
        offset = int(cursor.scalar(_U64, f"tensor {name!r}"))
        kind, size_bytes = _size(cursor, name, shape, number)
        tensors[name] = TensorInfo(name, kind, shape, offset, size_bytes)
    return tensors


def _size(cursor: _Cursor, name: str, shape: tuple[int, ...], number: int) -> tuple[GgmlType, int]:
    try:
        kind = GgmlType(number)
    except ValueError as error:
        raise cursor.fail(f"tensor {name!r} has type {number}, which is unknown here") from error
    n_values = 1
    for length in shape:
        n_values *= length
        if length < 1 or n_values > MAX_VALUES:
            raise cursor.fail(f"tensor {name!r} has the impossible shape {list(shape)}")
    if shape[0] % kind.block.n_values:
        raise cursor.fail(
            f"tensor {name!r}: rows of {shape[0]} are not whole {kind.name} blocks of {kind.block.n_values}"
        )
    return kind, kind.row_size_bytes(n_values)


def _place(
    cursor: _Cursor, tensors: Mapping[str, TensorInfo], data_offset: int, alignment: int
) -> dict[str, TensorInfo]:
    """Make the offsets absolute; check that tensors are aligned, inside the file and beside each other."""
    placed = {}
    for name, tensor in tensors.items():
        if tensor.offset % alignment:
            raise cursor.fail(f"tensor {name!r} starts at {tensor.offset}, which is not a multiple of {alignment}")
        start = data_offset + tensor.offset
        if start + tensor.size_bytes > cursor.size_bytes:
            end = start + tensor.size_bytes
            raise cursor.fail(f"tensor {name!r} ends at byte {end}, but the file has {cursor.size_bytes}")
        placed[name] = TensorInfo(name, tensor.type, tensor.shape, start, tensor.size_bytes)
    end, before = data_offset, ""
    for tensor in sorted(placed.values(), key=lambda one: one.offset):
        if tensor.offset < end:
            raise cursor.fail(f"tensors {before!r} and {tensor.name!r} overlap")
        end, before = tensor.offset + tensor.size_bytes, tensor.name
    return placed
