"""A blend's weights in the bank's layout, read from adapter files: no native memory, no model.

Members are stacked: A's by rows, B's by columns, each B times its scale and ``alpha / rank``. That is exact, since
``sum(s_i * B_i @ A_i) = [s_1 B_1, s_2 B_2, ...] @ [A_1; A_2; ...]``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from convert.errors import ConvertError
from convert.files import open_regular
from convert.gguf.header import GgufHeader, TensorInfo, read_header
from convert.gguf.quantisers import Ggml
from convert.gguf.types import GgmlType
from convert.rules.adapter import AdapterSummary, check_adapter
from runtime.errors import InvalidAdapter
from runtime.llama.lanes.bank import LANE_TYPES, LanePart


class AdapterFile:
    """An adapter's checked header and its open file, which stays readable when its name is gone."""

    def __init__(self, path: Path, base: GgufHeader) -> None:
        """Open and check ``path`` against its base model.

        Raises:
            InvalidAdapter: the file cannot be read, or breaks a rule that its message names.
        """
        try:
            self._header = read_header(path)
            self.summary: AdapterSummary = check_adapter(self._header, base)
            self._file = open_regular(path)
        except ConvertError as error:
            raise InvalidAdapter(str(error)) from error

    @property
    def rank(self) -> int:
        """The highest rank of its pairs."""
        return self.summary.max_rank

    @property
    def open_path(self) -> Path:
        """A path that leads to the open file, whatever has become of its name."""
        # Where opening it only duplicates the descriptor (macOS), whoever read it before has left the offset behind.
        os.lseek(self._file.fileno(), 0, os.SEEK_SET)
        return Path(f"/dev/fd/{self._file.fileno()}")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def pair(self, weight: str) -> tuple[TensorInfo, TensorInfo] | None:
        """The tensors A and B of a weight, or None if the adapter does not change it."""
        a, b = (self._header.tensors.get(weight + suffix) for suffix in (".lora_a", ".lora_b"))
        return (a, b) if a is not None and b is not None else None

    def factor(self, rank: int) -> float:
        """What the file itself multiplies the product of a pair with (llama-adapter.h, get_scale)."""
        return self.summary.alpha / rank if self.summary.alpha else 1.0

    def read(self, tensor: TensorInfo) -> npt.NDArray[np.uint8]:
        """The bytes of a tensor.

        Raises:
            InvalidAdapter: the file has become shorter.
        """
        data = os.pread(self._file.fileno(), tensor.size_bytes, tensor.offset)
        if len(data) != tensor.size_bytes:
            raise InvalidAdapter(f"{self._header.path} has become shorter since it was checked")
        return np.frombuffer(data, np.uint8)


def lane_parts(
    members: Sequence[tuple[AdapterFile, float]], shapes: dict[str, tuple[int, int]], rank: int, lane_type: str
) -> Iterator[LanePart]:
    """One weight after another, those alone that some member changes.

    Args:
        members: adapters and the scales the request gave them; their ranks add up to at most ``rank``.
        shapes: ``(n_in, n_out)`` of every weight of the bank.
        rank: the bank's.
        lane_type: the bank's.

    Raises:
        InvalidAdapter: a file has become shorter.
    """
    ggml, kind = Ggml(), GgmlType(LANE_TYPES[lane_type])
    for name, (n_in, n_out) in shapes.items():
        pairs = [(file, scale, pair) for file, scale in members if (pair := file.pair(name)) is not None]
        if not pairs:
            continue
        a_rows = np.zeros((rank, kind.row_size_bytes(n_in)), np.uint8)
        b_columns = np.zeros((n_out, rank), np.float32)
        start = 0
        for file, scale, (a, b) in pairs:
            end = start + b.shape[0]
            a_rows[start:end] = _rows(ggml, kind, a, file.read(a)).reshape(end - start, -1)
            factor = np.float32(scale * file.factor(b.shape[0]))
            b_columns[:, start:end] = ggml.dequantize(b.type, file.read(b), b.shape[0]) * factor
            start = end
        yield LanePart(name, a_rows.reshape(-1), ggml.quantize(kind, b_columns), start)


def _rows(ggml: Ggml, kind: GgmlType, tensor: TensorInfo, data: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The tensor's rows in type ``kind``."""
    if tensor.type == kind:
        return data
    return ggml.quantize(kind, ggml.dequantize(tensor.type, data, tensor.shape[0]))
