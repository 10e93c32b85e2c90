"""Chooses the type of each tensor. Pure: names, shapes and numbers in, types out.

The mixes are those of `llama_model_quantize` for arch `gemma`, whose head is tied to the token embedding.
Source: llama.cpp src/llama-quant.cpp llama_tensor_get_type_impl and tensor_type_fallback.
"""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from convert.errors import InvalidOption
from convert.gguf.types import GgmlType
from convert.rules.gemma import TOKEN_EMBEDDING, Hyperparameters, is_norm, split_block_name

T = GgmlType


@dataclass(frozen=True, slots=True)
class FileType:
    """A way of storing a whole model: its name, `general.file_type`, and the type most tensors get.

    Source of the numbers: llama.cpp include/llama.h enum llama_ftype.
    """

    name: str
    number: int
    default: GgmlType


MODEL_TYPES: Final = MappingProxyType(
    {
        one.name: one
        for one in (
            FileType("f32", 0, T.F32),
            FileType("f16", 1, T.F16),
            FileType("bf16", 32, T.BF16),
            FileType("q8_0", 7, T.Q8_0),
            FileType("q6_k", 18, T.Q6_K),
            FileType("q5_k_m", 17, T.Q5_K),
            FileType("q5_k_s", 16, T.Q5_K),
            FileType("q5_0", 8, T.Q5_0),
            FileType("q4_k_m", 15, T.Q4_K),
            FileType("q4_k_s", 14, T.Q4_K),
            FileType("q4_0", 2, T.Q4_0),
            FileType("iq4_xs", 30, T.IQ4_XS),
            FileType("q3_k_m", 12, T.Q3_K),
            FileType("q3_k_s", 11, T.Q3_K),
            FileType("q2_k", 10, T.Q2_K),
        )
    }
)

_FALLBACKS: Final = MappingProxyType(
    {T.IQ4_XS: T.IQ4_NL, T.Q2_K: T.Q4_0, T.Q3_K: T.Q4_0, T.Q4_K: T.Q5_0, T.Q5_K: T.Q5_1, T.Q6_K: T.Q8_0}
)
_QUALITY_FLOATS: Final = frozenset({T.F32, T.F16, T.BF16})


def parse_type(name: str, known: tuple[str, ...]) -> str:
    """Return the canonical form of a type's name as users write it (`Q4_K_M`, `q4-k-m`).

    Raises:
        InvalidOption: The name is none of `known`.
    """
    canonical = name.strip().lower().replace("-", "_")
    if canonical not in known:
        raise InvalidOption(f"unknown type {name!r}; choose one of {', '.join(known)}")
    return canonical


@dataclass(frozen=True, slots=True)
class Mix:
    """Chooses the type of every tensor of one model.

    `has_importance` says that an importance matrix is used, which changes a few choices of llama.cpp.
    """

    file_type: FileType
    hyperparameters: Hyperparameters
    has_importance: bool = False

    def type_of(self, name: str, shape: tuple[int, ...]) -> GgmlType:
        """Return the type of the tensor `name` with rows-first `shape`."""
        if is_norm(name) or len(shape) == 1:
            return T.F32
        if self.file_type.default in _QUALITY_FLOATS:
            return self.file_type.default
        n_columns = shape[-1]
        if name == TOKEN_EMBEDDING:
            return fitting(self._embedding_type(n_columns), n_columns)
        block = split_block_name(name)
        chosen = self.file_type.default if block is None else self._weight_type(*block)
        return fitting(chosen, n_columns)

    def _embedding_type(self, n_columns: int) -> GgmlType:
        """The tied head decides the quality of every token, so it gets more bits than the rest."""
        default = self.file_type.default
        if default is T.Q8_0 or n_columns % default.block.n_values:
            return T.Q8_0
        return T.Q6_K

    def _weight_type(self, layer: int, weight: str) -> GgmlType:
        if weight == "attn_v":
            return self._attn_v_type(layer)
        if weight == "ffn_down":
            return self._ffn_down_type(layer)
        if weight == "attn_output":
            return {"q2_k": T.Q3_K, "q3_k_m": T.Q4_K}.get(self.file_type.name, self.file_type.default)
        return self.file_type.default

    def _attn_v_type(self, layer: int) -> GgmlType:
        name, default = self.file_type.name, self.file_type.default
        shares_heads = self.hyperparameters.n_heads // self.hyperparameters.n_kv_heads >= 4
        if name == "q2_k":
            return T.Q4_K if shares_heads else T.Q3_K
        if name == "q3_k_m":
            return T.Q5_K if layer < 2 else T.Q4_K
        if name == "iq4_xs":
            return T.Q5_K if shares_heads else default
        if name in ("q4_k_m", "q5_k_m"):
            return T.Q6_K if self._gets_more_bits(layer) else default
        if name == "q4_k_s":
            return T.Q5_K if layer < 4 else default
        return default

    def _ffn_down_type(self, layer: int) -> GgmlType:
        name, default = self.file_type.name, self.file_type.default
        n_layers = self.hyperparameters.n_layers
        is_early = layer < n_layers // 8
        if name == "q2_k":
            return T.Q3_K
        if name == "q3_k_m":
            return T.Q5_K if layer < n_layers // 16 else T.Q4_K
        if name in ("q4_k_m", "q5_k_m"):
            return T.Q6_K if self._gets_more_bits(layer) else default
        if is_early and (name == "q4_k_s" or (name == "iq4_xs" and not self.has_importance)):
            return T.Q5_K
        if is_early and self.has_importance and name in ("q4_0", "q5_0"):
            return {"q4_0": T.Q4_1, "q5_0": T.Q5_1}[name]
        return default

    def _gets_more_bits(self, layer: int) -> bool:
        """Say whether a layer is in the first or last eighth, or a third one between them."""
        n_layers = self.hyperparameters.n_layers
        eighth = n_layers // 8
        return layer < eighth or layer >= 7 * n_layers // 8 or (layer - eighth) % 3 == 2


def fitting(kind: GgmlType, n_columns: int) -> GgmlType:
    """Return `kind`, or what llama.cpp takes instead when rows of `n_columns` are not whole blocks of it."""
    if n_columns % kind.block.n_values:
        kind = _FALLBACKS.get(kind, kind)
    return T.F16 if n_columns % kind.block.n_values else kind
