"""Merges adapters into a base: exact also for what no GGUF adapter can hold (DoRA, trained norms), and for blends.

W' = W + sum over adapters of the change each would make to W alone. A plain LoRA changes W by s * B @ A; DoRA makes
W + s * B @ A and then gives each row the trained magnitude; a trained norm or embedding replaces the old one.

Source: peft tuners/lora/layer.py (merge), tuners/lora/dora.py (get_weight_norm).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from convert.adapters.adapter import LoraAdapter, check_shapes
from convert.adapters.pair import LoraPair
from convert.errors import BadValue, InvalidOption, TensorMismatch, UnsupportedAdapter
from convert.gguf.header import GgufHeader
from convert.rules.gemma import TOKEN_EMBEDDING
from convert.tensors.sources import F32Array, RowSource, checked, read_all


@dataclass(frozen=True, slots=True)
class MergedAdapter:
    """One adapter of a merge and the user's scale for it."""

    adapter: LoraAdapter
    scale: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale) or abs(self.scale) > 1e6:
            raise InvalidOption(f"{self.adapter.path}: a scale of {self.scale} cannot be merged")


@dataclass(frozen=True, slots=True)
class Change:
    """What one adapter does to one weight: the pair, its whole factor, and DoRA's (n_out,) magnitudes or None."""

    pair: LoraPair
    factor: float
    magnitude: RowSource | None

    def of(self, weights: F32Array, first_row: int) -> F32Array:
        """Return the change to some rows of the base, float32 of their shape.

        Args:
            weights: (n_rows, n_columns), the base's rows from `first_row` on.
            first_row: Where they begin.

        Raises:
            BadValue: A changed row is zero, which has no direction for DoRA.
        """
        n_rows = len(weights)
        delta = np.float32(self.factor) * (self.pair.b.read(first_row, n_rows) @ read_all(self.pair.a))
        if self.magnitude is None:
            return delta
        turned = weights + delta
        lengths = np.linalg.norm(turned, axis=1, keepdims=True)
        wanted = read_all(self.magnitude).reshape(-1, 1)[first_row : first_row + n_rows]
        if not (lengths > 0.0).all():
            raise BadValue("DoRA: a row of the changed weight is zero, so it has no direction")
        merged: F32Array = turned * (wanted / lengths)
        return merged - weights


@dataclass(frozen=True, slots=True)
class MergedRows:
    """A weight of the base with every adapter's change added."""

    base: RowSource
    changes: tuple[Change, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first."""
        return self.base.shape

    def read(self, first_row: int, n_rows: int) -> F32Array:
        """Return (n_rows, n_columns)."""
        weights = self.base.read(first_row, n_rows)
        merged = weights.copy()
        with np.errstate(over="ignore", invalid="ignore"):
            for change in self.changes:
                merged += change.of(weights, first_row)
        return checked(merged, "the merged weight")


@dataclass(frozen=True, slots=True)
class ReplacedNorm:
    """A norm that an adapter trained whole, as llama.cpp wants it: 1 + w."""

    trained: RowSource

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first."""
        return self.trained.shape

    def read(self, first_row: int, n_rows: int) -> F32Array:
        """Return (n_rows, n_columns)."""
        return self.trained.read(first_row, n_rows) + np.float32(1.0)


def merged_tensors(
    base_tensors: Mapping[str, RowSource], base: GgufHeader, parts: Sequence[MergedAdapter]
) -> dict[str, RowSource]:
    """Return the base's tensors with every part merged in, in the base's order.

    Args:
        base_tensors: By GGUF name.
        base: Their shapes, and what errors call the base.
        parts: At least one adapter.

    Raises:
        UnsupportedAdapter: Two parts train the same norm, a norm is to be scaled, or a part is an aLoRA.
        TensorMismatch, BadValue: A part does not fit the base.
    """
    changes: dict[str, list[Change]] = {}
    norms: dict[str, RowSource] = {}
    for part in parts:
        if part.adapter.invocation_tokens:
            raise UnsupportedAdapter(
                f"{part.adapter.path}: an activated LoRA (aLoRA) applies to some tokens only, so it cannot be merged; "
                "serve it beside the base"
            )
        check_shapes(part.adapter, base)
        for name, pair in part.adapter.pairs.items():
            magnitude = part.adapter.magnitudes.get(name)
            if magnitude is not None and math.prod(magnitude.shape) != pair.b.shape[0]:
                raise TensorMismatch(f"{part.adapter.path}: {name!r} has magnitudes of {list(magnitude.shape)}")
            factor = part.scale * pair.alpha / pair.rank
            changes.setdefault(name, []).append(Change(pair, factor, magnitude))
        for name, trained in part.adapter.norms.items():
            norms[name] = _checked_norm(part, name, trained, base, is_taken=name in norms)
    merged: dict[str, RowSource] = {}
    for name, source in base_tensors.items():
        merged[name] = MergedRows(source, tuple(changes[name])) if name in changes else norms.get(name, source)
    merged[TOKEN_EMBEDDING] = _merged_embedding(parts, base_tensors[TOKEN_EMBEDDING])
    return merged


def _merged_embedding(parts: Sequence[MergedAdapter], base: RowSource) -> RowSource:
    trained = [part for part in parts if part.adapter.embedding is not None]
    if len(trained) > 1:
        raise UnsupportedAdapter(
            f"{trained[1].adapter.path}: the embedding is trained by another adapter of this merge too"
        )
    for part in trained:
        if part.scale != 1.0:
            raise UnsupportedAdapter(
                f"{part.adapter.path}: its embedding is trained whole, so it cannot be scaled by {part.scale}"
            )
        if part.adapter.embedding is not None:
            return part.adapter.embedding.merged(base)
    return base


def _checked_norm(part: MergedAdapter, name: str, trained: RowSource, base: GgufHeader, *, is_taken: bool) -> RowSource:
    path = part.adapter.path
    if is_taken:
        raise UnsupportedAdapter(f"{path}: {name!r} is trained whole by another adapter of this merge too")
    if part.scale != 1.0:
        raise UnsupportedAdapter(f"{path}: {name!r} is trained whole, so its adapter cannot be scaled by {part.scale}")
    wanted = base.tensors[name].shape[::-1] if name in base.tensors else None
    if trained.shape != wanted:
        raise TensorMismatch(f"{path}: {name!r} has shape {list(trained.shape)}, but the base has {wanted}")
    return ReplacedNorm(trained)
