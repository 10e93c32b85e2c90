"""Sources of float32 rows, and sources that change the rows of another. Nothing is read before it is needed."""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from convert.errors import BadValue
from convert.tensors.safetensors import SafetensorsFile

F32Array = npt.NDArray[np.float32]


class RowSource(Protocol):
    """A tensor's values; `shape` has rows first, a vector is one row."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first."""

    def read(self, first_row: int, n_rows: int) -> F32Array:
        """Return (n_rows, n_columns) finite float32; called from several threads at once."""


def read_all(source: RowSource) -> F32Array:
    """Return a whole matrix, (n_rows, n_columns); for the small ones of adapters."""
    return source.read(0, math.prod(source.shape[:-1]))


def checked(rows: F32Array, what: str) -> F32Array:
    """Return computed rows, (n_rows, n_columns), which must be finite: ggml's quantisers count on it.

    Raises:
        BadValue: They are not; the message starts with `what`.
    """
    if not np.isfinite(rows).all():
        raise BadValue(f"{what}: the result is too large for float32")
    return rows


@dataclass(frozen=True, slots=True)
class StoredRows:
    """A tensor of a safetensors file."""

    file: SafetensorsFile
    key: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first."""
        return self.file.tensors[self.key].shape

    def read(self, first_row: int, n_rows: int) -> F32Array:
        """Return (n_rows, n_columns); raises as `SafetensorsFile.read_rows`."""
        return self.file.read_rows(self.key, first_row, n_rows)


@dataclass(frozen=True, slots=True)
class TransposedRows:
    """A small matrix, transposed; each read reads all of it."""

    source: RowSource

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first."""
        return self.source.shape[::-1]

    def read(self, first_row: int, n_rows: int) -> F32Array:
        """Return (n_rows, n_columns)."""
        return np.ascontiguousarray(read_all(self.source).T[first_row : first_row + n_rows])


@dataclass(frozen=True, slots=True)
class ScaledRows:
    """A tensor times a factor, which is applied in float64 and rounded once."""

    source: RowSource
    factor: float

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first."""
        return self.source.shape

    def read(self, first_row: int, n_rows: int) -> F32Array:
        """Return (n_rows, n_columns)."""
        wide = self.source.read(first_row, n_rows) * np.float64(self.factor)
        with np.errstate(over="ignore"):
            return checked(wide.astype(np.float32), f"a LoRA's B times {self.factor:g}")


@dataclass(frozen=True, slots=True)
class PaddedRows:
    """A matrix with zero rows below and zero columns to the right, up to `shape`."""

    source: RowSource
    shape: tuple[int, ...]

    def read(self, first_row: int, n_rows: int) -> F32Array:
        """Return (n_rows, n_columns)."""
        rows = np.zeros((n_rows, self.shape[1]), np.float32)
        n_real = min(n_rows, self.source.shape[0] - first_row)
        if n_real > 0:
            rows[:n_real, : self.source.shape[1]] = self.source.read(first_row, n_real)
        return rows


@dataclass(frozen=True, slots=True)
class ReplacedRows:
    """A matrix of which some rows, by their index, are those of another."""

    source: RowSource
    indices: tuple[int, ...]
    rows: RowSource

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first."""
        return self.source.shape

    def read(self, first_row: int, n_rows: int) -> F32Array:
        """Return (n_rows, n_columns)."""
        chunk = self.source.read(first_row, n_rows).copy()
        for row, index in enumerate(self.indices):
            if first_row <= index < first_row + n_rows:
                chunk[index - first_row] = self.rows.read(row, 1)[0]
        return chunk
