"""Plans a GGUF adapter from a LoRA adapter of any dialect; llama.cpp applies it exactly as it was trained.

llama.cpp scales each pair by alpha / rank, with one alpha for the whole file; it does not scale where the file has no
alpha (src/llama-adapter.h get_scale). So a common alpha is written. Differing ones are folded into B, and the file gets
no alpha.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np

from convert.adapters.embedding import TrainedEmbedding
from convert.adapters.pair import LoraPair
from convert.errors import BadValue, TensorMismatch, UnsupportedAdapter
from convert.folders import folder_name
from convert.gguf.header import GgufHeader, ValueType
from convert.gguf.types import GgmlType
from convert.gguf.writer import FilePlan, KeyValue
from convert.models.mix import fitting
from convert.models.plan import QUANTIZATION_VERSION
from convert.rules.adapter import ALPHA_KEY, BASE_DIGEST_KEY, BASE_NAME_KEY, INVOCATION_KEY
from convert.rules.gemma import ARCHITECTURE
from convert.tensors.encoder import Encoder
from convert.tensors.sources import PaddedRows, RowSource, ScaledRows

STORED_TYPES: Final = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_k")
_MAX_FACTOR: Final = 1e6  # alpha / rank beyond this is a mistake, not a scale


@dataclass(frozen=True, slots=True)
class LoraAdapter:
    """What an adapter holds, under the GGUF names of the weights it changes.

    `magnitudes` (DoRA), `norms` (trained whole, as the checkpoint stores them) and `embedding` exist only in a merged
    model. `warnings` are for the user: what may make a correct conversion useless. `invocation_tokens` make it an
    activated LoRA (aLoRA), which applies from their last occurrence in the prompt on.
    """

    path: Path
    pairs: Mapping[str, LoraPair]
    base_name: str | None = None
    magnitudes: Mapping[str, RowSource] = field(default_factory=lambda: MappingProxyType({}))
    norms: Mapping[str, RowSource] = field(default_factory=lambda: MappingProxyType({}))
    embedding: TrainedEmbedding | None = None
    warnings: tuple[str, ...] = ()
    invocation_tokens: tuple[int, ...] = ()


def check_magnitudes(
    config_path: Path, pairs: Mapping[str, LoraPair], magnitudes: Mapping[str, RowSource], *, is_dora: bool
) -> None:
    """Check that a DoRA has the magnitudes of every pair, so that none is taken for a plain LoRA.

    Raises:
        TensorMismatch: One is missing.
    """
    for name in pairs:
        if (is_dora or magnitudes) and name not in magnitudes:
            raise TensorMismatch(f"{config_path}: a DoRA, but {name!r} has no magnitudes")


def check_shapes(adapter: LoraAdapter, base: GgufHeader) -> None:
    """Check every pair against the base.

    Raises:
        TensorMismatch: A weight does not exist in the base, or has another shape there.
        BadValue: alpha is not a usable factor.
    """
    for name, pair in adapter.pairs.items():
        if len(pair.a.shape) != 2 or len(pair.b.shape) != 2 or pair.b.shape[1] != pair.rank or pair.rank < 1:
            raise TensorMismatch(f"{adapter.path}: {name!r} has A {list(pair.a.shape)} and B {list(pair.b.shape)}")
        if name not in base.tensors:
            raise TensorMismatch(f"{adapter.path}: {name!r} does not exist in the base {base.path}")
        made_for, wanted = (pair.b.shape[0], pair.a.shape[1]), base.tensors[name].shape[::-1]
        if made_for != wanted:
            raise TensorMismatch(
                f"{adapter.path}: {name!r} is made for a weight of {list(made_for)}, but "
                f"{base.path} has {list(wanted)}; is it for another model?"
            )
        if not 0.0 < pair.alpha / pair.rank <= _MAX_FACTOR:
            raise BadValue(f"{adapter.path}: {name!r} has alpha {pair.alpha} for rank {pair.rank}")


def plan_adapter(
    adapter: LoraAdapter, base: GgufHeader, type_name: str, encoder: Encoder, base_digest: str | None = None
) -> FilePlan:
    """Decide everything about the result; no weight is read yet.

    Args:
        adapter: What to convert.
        base: The model it is for.
        type_name: One of `STORED_TYPES`.
        encoder: Makes the tensors' bytes.
        base_digest: SHA-256 of the base file, to be recorded.

    Raises:
        UnsupportedAdapter: It holds what no GGUF adapter can hold, or nothing at all.
        TensorMismatch, BadValue: See `check_shapes`.
    """
    refuse_unrepresentable(adapter)
    if not adapter.pairs:
        raise UnsupportedAdapter(f"{adapter.path}: the adapter holds no LoRA tensors")
    check_shapes(adapter, base)
    stored = {name: _stored(pair, type_name) for name, pair in adapter.pairs.items()}
    alphas = {pair.alpha for pair, _, _ in stored.values()}
    alpha = alphas.pop() if len(alphas) == 1 else None
    tensors = []
    for name, (pair, a_type, b_type) in stored.items():
        b = pair.b if alpha is not None else ScaledRows(pair.b, pair.alpha / pair.rank)
        tensors.append(encoder.plan(f"{name}.lora_a", pair.a, a_type))
        tensors.append(encoder.plan(f"{name}.lora_b", b, b_type))
    return FilePlan(_metadata(adapter, alpha, base_digest), tensors, adapter.warnings)


def refuse_unrepresentable(adapter: LoraAdapter) -> None:
    """Refuse an adapter that only a whole base can hold.

    Raises:
        UnsupportedAdapter: The message names the way out.
    """
    for kind, is_there in (
        ("a DoRA", adapter.magnitudes),
        ("trained norms", adapter.norms),
        ("a trained embedding or head", adapter.embedding),
    ):
        if is_there:
            raise UnsupportedAdapter(
                f"{adapter.path}: {kind} cannot be a GGUF adapter; write a whole base with it: "
                f"gemlane merge CHECKPOINT {adapter.path} -o FILE"
            )


def _stored(pair: LoraPair, type_name: str) -> tuple[LoraPair, GgmlType, GgmlType]:
    """Choose how a pair is stored: the pair, padded if that pays, and the types of A and B.

    A's rows have n_in values, B's only `rank`: a quantised B needs a rank of whole blocks of 32. Padding
    the rank to 32 pays for 4 bits from rank 16 on, and never for 8.
    """
    rank, n_in = pair.a.shape
    match type_name:
        case "f32" | "f16" | "bf16":
            kind = {"f32": GgmlType.F32, "f16": GgmlType.F16, "bf16": GgmlType.BF16}[type_name]
            return pair, kind, kind
        case "q4_k":
            return pair, fitting(GgmlType.Q4_K, n_in), GgmlType.F16
        case "q8_0":
            return pair, fitting(GgmlType.Q8_0, n_in), fitting(GgmlType.Q8_0, rank)
        case _:
            a_type = fitting(GgmlType.Q4_0, n_in)
            if rank < 16 or a_type is GgmlType.F16:
                return pair, a_type, fitting(GgmlType.Q4_0, rank)
            padded = -(-rank // 32) * 32
            return _padded(pair, padded), a_type, GgmlType.Q4_0


def _padded(pair: LoraPair, rank: int) -> LoraPair:
    """Return the same change with a higher rank: zero rows in A, zero columns in B, and alpha to match."""
    if rank == pair.rank:
        return pair
    return LoraPair(
        a=PaddedRows(pair.a, (rank, pair.a.shape[1])),
        b=PaddedRows(pair.b, (pair.b.shape[0], rank)),
        alpha=pair.alpha * rank / pair.rank,
    )


def _metadata(adapter: LoraAdapter, alpha: float | None, base_digest: str | None) -> list[KeyValue]:
    text = ValueType.STRING
    entries = [
        KeyValue("general.architecture", text, ARCHITECTURE),
        KeyValue("general.type", text, "adapter"),
        KeyValue("adapter.type", text, "lora"),
        KeyValue("general.name", text, folder_name(adapter.path)),
    ]
    if adapter.base_name:
        entries.append(KeyValue("general.base_model.count", ValueType.UINT32, 1))
        entries.append(KeyValue(BASE_NAME_KEY, text, adapter.base_name))
    if alpha is not None:
        entries.append(KeyValue(ALPHA_KEY, ValueType.FLOAT32, alpha))
    if adapter.invocation_tokens:
        tokens = np.array(adapter.invocation_tokens, np.uint32)
        entries.append(KeyValue(INVOCATION_KEY, ValueType.ARRAY, tokens))
    if base_digest is not None:
        entries.append(KeyValue(BASE_DIGEST_KEY, text, base_digest))
    entries.append(KeyValue("general.quantization_version", ValueType.UINT32, QUANTIZATION_VERSION))
    return entries
