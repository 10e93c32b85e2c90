"""Rows of float32 in, encoded bytes out: chunk by chunk, on several threads, in order, in bounded memory."""

import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from convert.errors import BadValue
from convert.finite import is_finite
from convert.ggml import Ggml
from convert.ggml_types import GgmlType
from convert.writer import TensorPlan

CHUNK_VALUES: Final = 2 << 20  # 8 MiB of float32 for each thread

F32Array = npt.NDArray[np.float32]
U8Array = npt.NDArray[np.uint8]


class RowSource(Protocol):
    """Where a tensor's values come from; `shape` has rows first, a vector is one row."""

    @property
    def name(self) -> str:
        """The tensor's GGUF name."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first."""

    def read(self, first_row: int, n_rows: int) -> F32Array:
        """Return (n_rows, n_columns) finite float32; called from several threads at once."""


@dataclass(frozen=True, slots=True)
class ArraySource:
    """A tensor that is already in memory."""

    name: str
    values: F32Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first."""
        return self.values.shape

    def read(self, first_row: int, n_rows: int) -> F32Array:
        """Return (n_rows, n_columns)."""
        return self.values.reshape(-1, self.shape[-1])[first_row : first_row + n_rows]


class Encoder:
    """Makes `TensorPlan`s whose bytes are computed when the writer asks. Owns its threads."""

    def __init__(self, ggml: Ggml, n_threads: int = 1) -> None:
        """Start `n_threads` threads."""
        self._ggml = ggml
        self._n_threads = n_threads
        self._pool = ThreadPoolExecutor(n_threads, thread_name_prefix="encode")

    def __enter__(self) -> "Encoder":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def plan(self, source: RowSource, kind: GgmlType, importance: F32Array | None = None) -> TensorPlan:
        """Plan to store `source` as `kind`; `importance` is (n_columns,) or None."""
        return TensorPlan(source.name, kind, source.shape, lambda: self._chunks(source, kind, importance))

    def _chunks(self, source: RowSource, kind: GgmlType, importance: F32Array | None) -> Iterator[U8Array]:
        n_rows, n_columns = math.prod(source.shape[:-1]), source.shape[-1]
        step = max(1, CHUNK_VALUES // n_columns)
        pending: deque[Future[U8Array]] = deque()
        for first in range(0, n_rows, step):
            if len(pending) > self._n_threads:
                yield pending.popleft().result()
            n = min(step, n_rows - first)
            pending.append(self._pool.submit(self._encode, source, kind, importance, (first, n)))
        while pending:
            yield pending.popleft().result()

    def _encode(
        self, source: RowSource, kind: GgmlType, importance: F32Array | None, span: tuple[int, int]
    ) -> U8Array:
        rows = source.read(*span)
        if kind is GgmlType.F32:
            return np.ascontiguousarray(rows).view(np.uint8).reshape(-1)
        encoded = self._ggml.quantize(kind, rows, importance)
        if not is_finite(kind, encoded):
            largest = float(np.abs(rows).max())
            raise BadValue(
                f"{source.name!r}: a value of {largest:.3g} does not fit {kind.name}; use bf16 or f32"
            )
        return encoded
