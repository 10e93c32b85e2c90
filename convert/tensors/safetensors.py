"""Reads the rows of safetensors files.

Nothing is memory-mapped, so a file that is cut while it is read is an error and not a crash.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, Final, Self

import numpy as np
import numpy.typing as npt

from convert.errors import BadValue, MalformedFile, MalformedSafetensors, QuantizedSource
from convert.files import open_regular, read_at
from convert.tensors.safetensors_header import VALUE_BYTES, SourceTensor, read_tensor_table

FLOAT_TYPES: Final = frozenset({"F32", "F16", "BF16"})

EMPTY: Final = (
    "is empty: its weights were not gathered when it was saved (DeepSpeed ZeRO-3); gather them (zero_to_fp32.py, or "
    "stage3_gather_16bit_weights_on_model_save)"
)
"""What is said of a tensor without a value."""

F32Array = npt.NDArray[np.float32]


class SafetensorsFile:
    """One open safetensors file. Reading is positional, so several threads may read at once."""

    def __init__(self, path: Path) -> None:
        """Open the file and check its header.

        Raises:
            MissingFile, NotARegularFile: As `files.open_regular`.
            LfsPointer, UnsafeFile, MalformedSafetensors: As `safetensors_header.read_tensor_table`.
        """
        self.path = path
        self._file: BinaryIO = open_regular(path)
        try:
            self.tensors: Mapping[str, SourceTensor] = read_tensor_table(self._file, path)
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
        row_bytes = n_columns * VALUE_BYTES[tensor.dtype]
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
    """Decode little-endian F32, F16 or BF16 bytes to (n_values,) float32; exact for all three."""
    if dtype == "BF16":
        return (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
    if dtype == "F16":
        return np.frombuffer(raw, np.float16).astype(np.float32)
    return np.frombuffer(raw, np.float32)
