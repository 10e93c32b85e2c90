"""Reads rows of float32 from the tensors of a GGUF file, of any type."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from convert.errors import MalformedGguf
from convert.files import open_regular, read_at
from convert.gguf.header import GgufHeader, read_header
from convert.gguf.quantisers import Ggml
from convert.tensors.sources import F32Array


class OpenGguf:
    """A GGUF file whose header was read. Reading its tensors is positional, so several threads may read at once."""

    def __init__(self, path: Path) -> None:
        """Read the header and open the file.

        Raises:
            ConvertError: As `header.read_header`.
        """
        self.header: GgufHeader = read_header(path)
        self._file = open_regular(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, offset: int, n_bytes: int) -> bytes:
        """Return exactly `n_bytes` at `offset`.

        Raises:
            MalformedFile: The file became shorter.
        """
        return read_at(self._file, offset, n_bytes)


@dataclass(frozen=True, slots=True)
class GgufRows:
    """One tensor of a GGUF file as a `RowSource`."""

    file: OpenGguf
    key: str
    ggml: Ggml

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first."""
        return self.file.header.tensors[self.key].shape[::-1]

    def read(self, first_row: int, n_rows: int) -> F32Array:
        """Return (n_rows, n_columns).

        Raises:
            MalformedGguf: A value is NaN or infinite.
        """
        tensor = self.file.header.tensors[self.key]
        row_bytes = tensor.type.row_size_bytes(tensor.shape[0])
        raw = self.file.read(tensor.offset + first_row * row_bytes, n_rows * row_bytes)
        rows = self.ggml.dequantize(tensor.type, np.frombuffer(raw, np.uint8), tensor.shape[0])
        if not np.isfinite(rows).all():
            raise MalformedGguf(f"{self.file.header.path}: {self.key!r} holds NaN or infinity")
        return rows
