"""Encodes rows of float32 chunk by chunk, on several threads, in order, in bounded memory."""

import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from convert.errors import BadValue
from convert.gguf.finite import is_finite
from convert.gguf.quantisers import Ggml
from convert.gguf.types import GgmlType
from convert.gguf.writer import TensorPlan
from convert.tensors.sources import F32Array, RowSource

CHUNK_VALUES: Final = 2 << 20  # 8 MiB of float32 for each thread

U8Array = npt.NDArray[np.uint8]


@dataclass(slots=True)
class _WatchedRows:
    """A source that notes whether any of its values was not zero. Threads only ever set the flag."""

    source: RowSource
    has_values: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    def read(self, first_row: int, n_rows: int) -> F32Array:
        rows = self.source.read(first_row, n_rows)
        self.has_values = self.has_values or bool(rows.any())
        return rows


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

    def plan(self, name: str, source: RowSource, kind: GgmlType, importance: F32Array | None = None) -> TensorPlan:
        """Plan to store `source` as tensor `name` of type `kind`; `importance` is (n_columns,) or None."""
        return TensorPlan(name, kind, source.shape, lambda: self._chunks(name, source, kind, importance))

    def plan_weight(self, name: str, source: RowSource, kind: GgmlType, importance: F32Array | None) -> TensorPlan:
        """Plan a weight of a base model, which is never all zeros; `importance` is (n_columns,) or None.

        The plan's chunks raise BadValue at their end if all values were zero.
        """
        watched = _WatchedRows(source)

        def chunks() -> Iterator[U8Array]:
            yield from self._chunks(name, watched, kind, importance)
            if not watched.has_values:
                raise BadValue(
                    f"{name!r} holds nothing but zeros: the weights are incomplete, as after a download that reserved "
                    "its space and stopped; fetch them again"
                )

        return TensorPlan(name, kind, source.shape, chunks)

    def _chunks(self, name: str, source: RowSource, kind: GgmlType, importance: F32Array | None) -> Iterator[U8Array]:
        def encode(first_row: int, n_rows: int) -> U8Array:
            rows = source.read(first_row, n_rows)
            encoded = self._ggml.quantize(kind, rows, importance)
            if not is_finite(kind, encoded):
                largest = float(np.abs(rows).max())
                raise BadValue(f"{name!r}: a value of {largest:.3g} does not fit {kind.name}; use bf16 or f32")
            return encoded

        n_rows = math.prod(source.shape[:-1])
        step = max(1, CHUNK_VALUES // source.shape[-1])
        pending: deque[Future[U8Array]] = deque()
        for first in range(0, n_rows, step):
            if len(pending) > self._n_threads:
                yield pending.popleft().result()
            pending.append(self._pool.submit(encode, first, min(step, n_rows - first)))
        while pending:
            yield pending.popleft().result()
