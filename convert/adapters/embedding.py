"""The token embedding or output head that an adapter trained. A merge writes it; a GGUF adapter cannot hold it.

llama.cpp's gemma has one matrix for both. Two matrices that were trained apart cannot be represented. A matrix that
PEFT saved beside a LoRA and that equals the base's own changes nothing.

Source: peft tuners/trainable_tokens/layer.py (rows replaced by index), tuners/lora/layer.py Embedding.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from convert.adapters.pair import LoraPair
from convert.errors import TensorMismatch, UnsupportedAdapter
from convert.gguf.quantisers import Ggml
from convert.gguf.types import GgmlType
from convert.tensors.sources import F32Array, ReplacedRows, RowSource, checked, read_all

_CHUNK_VALUES: Final = 2 << 20
_SAME: Final = 1e-6  # relative; two orders of summation in F32 differ by less
# How much farther than its own rounding a quantised base may be from the saved matrix, and still be the same.
_ROUNDING: Final = 1.05


@dataclass(frozen=True, slots=True)
class TrainedMatrix:
    """What training made of a (n_vocab, n_embd) matrix.

    `whole` replaces it, then `token_rows` replace the rows `token_ids`, then the pair's change is added.
    """

    whole: RowSource | None = None
    token_ids: tuple[int, ...] = ()
    token_rows: RowSource | None = None
    pair: LoraPair | None = None

    def rows(self, base: RowSource) -> RowSource:
        """Return the matrix that training made of `base`."""
        source = base if self.whole is None else self.whole
        if self.token_rows is not None:
            source = ReplacedRows(source, self.token_ids, self.token_rows)
        return source if self.pair is None else _AddedPair(source, self.pair)


@dataclass(frozen=True, slots=True)
class TrainedEmbedding:
    """What an adapter trained of the token embedding and of the output head; None where that is the base's."""

    path: Path
    embedding: TrainedMatrix | None
    head: TrainedMatrix | None

    def merged(self, base: RowSource) -> RowSource:
        """Return the one matrix that a merged model has.

        Args:
            base: (n_vocab, n_embd), the base's.

        Raises:
            UnsupportedAdapter: Embedding and head were trained apart.
            TensorMismatch: A shape does not fit the base.
        """
        embedding, head = self._matrices(base)
        if self.embedding != self.head and (n_rows := _n_different(embedding, head)):
            raise UnsupportedAdapter(
                f"{self.path}: embed_tokens and lm_head were trained apart ({n_rows} of {embedding.shape[0]} rows "
                "differ), but llama.cpp's gemma has one matrix for both; train with ensure_weight_tying=True, or "
                "without embed_tokens and lm_head"
            )
        return embedding

    def is_untouched(self, base: RowSource, kind: GgmlType, ggml: Ggml) -> bool:
        """Say whether nothing but the base's own matrix was saved.

        Args:
            base: (n_vocab, n_embd), the base's.
            kind: The type that the base is stored in; a difference within its rounding does not count.
            ggml: Rounds as the base was rounded.

        Raises:
            TensorMismatch: A shape does not fit the base.
        """
        matrices = self._matrices(base)
        return all(one.shape == base.shape and _is_rounded(one, base, kind, ggml) for one in matrices)

    def _matrices(self, base: RowSource) -> tuple[RowSource, RowSource]:
        for one in (self.embedding, self.head):
            if one is not None:
                _check_shapes(self.path, one, base)
        embedding = base if self.embedding is None else self.embedding.rows(base)
        head = base if self.head is None else self.head.rows(base)
        return embedding, head


@dataclass(frozen=True, slots=True)
class _AddedPair:
    """A matrix with a LoRA's change added."""

    source: RowSource
    pair: LoraPair

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    def read(self, first_row: int, n_rows: int) -> F32Array:
        factor = np.float32(self.pair.alpha / self.pair.rank)
        with np.errstate(over="ignore", invalid="ignore"):
            change = factor * (self.pair.b.read(first_row, n_rows) @ read_all(self.pair.a))
            return checked(self.source.read(first_row, n_rows) + change, "the embedding with its LoRA")


def _check_shapes(path: Path, trained: TrainedMatrix, base: RowSource) -> None:
    n_rows, n_columns = base.shape
    if trained.whole is not None:
        shape = trained.whole.shape
        if len(shape) != 2 or shape[1] != n_columns or shape[0] < n_rows:
            raise TensorMismatch(f"{path}: an embedding of {list(shape)}, but the base has {[n_rows, n_columns]}")
        n_rows = shape[0]
    if trained.token_ids and max(trained.token_ids) >= n_rows:
        raise TensorMismatch(
            f"{path}: token {max(trained.token_ids)} was trained, but the embedding has only {n_rows} rows"
        )
    if trained.token_rows is not None and trained.token_rows.shape[1] != n_columns:
        raise TensorMismatch(f"{path}: trained token rows of {trained.token_rows.shape[1]} values, not {n_columns}")
    pair = trained.pair
    if pair is not None and (pair.b.shape[0], pair.a.shape[1]) != (n_rows, n_columns):
        made_for = [pair.b.shape[0], pair.a.shape[1]]
        raise TensorMismatch(f"{path}: a LoRA for an embedding of {made_for}, but there it is {[n_rows, n_columns]}")


def _chunks(one: RowSource, other: RowSource) -> Iterator[tuple[F32Array, F32Array]]:
    step = max(1, _CHUNK_VALUES // one.shape[1])
    for first in range(0, one.shape[0], step):
        n_rows = min(step, one.shape[0] - first)
        yield one.read(first, n_rows), other.read(first, n_rows)


def _n_different(one: RowSource, other: RowSource) -> int:
    """Count the rows in which two matrices differ; all of them if the shapes do."""
    if one.shape != other.shape:
        return one.shape[0]
    n_different = 0
    for ours, theirs in _chunks(one, other):
        bound = _SAME * max(float(np.abs(ours).max()), float(np.abs(theirs).max()))
        n_different += int((np.abs(ours - theirs) > bound).any(axis=1).sum())
    return n_different


def _is_rounded(original: RowSource, stored: RowSource, kind: GgmlType, ggml: Ggml) -> bool:
    """Say whether `stored` is `original` rounded to type `kind`."""
    for ours, theirs in _chunks(original, stored):
        rounded = ggml.dequantize(kind, ggml.quantize(kind, ours), ours.shape[1])
        allowed = _ROUNDING * np.linalg.norm(rounded - ours, axis=1) + _SAME * np.linalg.norm(ours, axis=1)
        if (np.linalg.norm(theirs - ours, axis=1) > allowed).any():
            return False
    return True
