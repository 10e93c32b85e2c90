"""Which keys a base model's header may have, and their exact values: an allow-list.

llama.cpp reads any key of its tables for every architecture, and believes it: `gemma.expert_count` 8 aborts the load,
`gemma.rope.dimension_count` 3 the first batch, `gemma.nextn_predict_layers` makes it count layers that are not there,
and a `general.alignment` below 32 aborts it too.

Sources: llama.cpp src/llama-arch.cpp (LLM_KV_NAMES), llama-model.cpp (load_hparams) and llama-vocab.cpp, as of the
libllama in llama-cpp-python 0.3.36.
"""

import math
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, Final

from convert.errors import RejectedModel
from convert.gguf.header import GgufHeader, ValueType
from convert.rules.gemma import ARCHITECTURE

MIN_ALIGNMENT: Final = 32  # ggml-impl.h TENSOR_ALIGNMENT: a mapped file with less aborts the load

Rule = tuple[ValueType, Callable[[Any], bool], str]
"""The type, the values that may stand, and how to say so."""

_ANY: Final = (ValueType.UINT32, lambda _: True, "a UINT32")
_COUNT: Final = (ValueType.UINT32, lambda value: 1 <= value <= 1 << 24, "a UINT32 from 1 to 16777216")
_NONE: Final = (ValueType.UINT32, lambda value: value == 0, "0: Gemma has none")
_ABOVE_0: Final = (
    ValueType.FLOAT32,
    lambda value: math.isfinite(value) and value > 0.0,
    "a float above 0",
)
_BOOL: Final = (ValueType.BOOL, lambda _: True, "a BOOL")
_TEXT: Final = (ValueType.STRING, lambda _: True, "a STRING")

_ALIGNMENT: Final = (
    ValueType.UINT32,
    lambda value: value % MIN_ALIGNMENT == 0,
    f"a multiple of {MIN_ALIGNMENT}",
)

_GEMMA: Final[MappingProxyType[str, Rule]] = MappingProxyType(
    {
        "context_length": _COUNT,
        "embedding_length": _COUNT,
        "block_count": _COUNT,
        "feed_forward_length": _COUNT,
        "attention.head_count": _COUNT,
        "attention.head_count_kv": _COUNT,
        "attention.key_length": _COUNT,
        "attention.value_length": _COUNT,
        "attention.layer_norm_rms_epsilon": _ABOVE_0,
        "attention.layer_norm_epsilon": _ABOVE_0,
        "attention.causal": (ValueType.BOOL, lambda value: value is True, "true: Gemma is causal"),
        "rope.freq_base": _ABOVE_0,
        "rope.scale_linear": _ABOVE_0,
        "rope.scaling.factor": _ABOVE_0,
        "rope.scaling.type": (ValueType.STRING, lambda value: value in ("none", "linear"), "'none' or 'linear'"),
        "rope.scaling.finetuned": _BOOL,
        "rope.scaling.original_context_length": _COUNT,
        "expert_count": _NONE,
        "expert_used_count": _NONE,
        "nextn_predict_layers": _NONE,
    }
)
"""Keys below `gemma.`; `rope.dimension_count` and `vocab_size` have rules of their own, which need other values."""
_TOKENIZER: Final[MappingProxyType[str, Rule]] = MappingProxyType(
    {
        "model": _TEXT,
        "pre": _TEXT,
        "token_type_count": _ANY,
        "remove_extra_whitespaces": _BOOL,
        "add_bos_token": _BOOL,
        "add_eos_token": _BOOL,
        "add_sep_token": _BOOL,
        "add_space_prefix": _BOOL,
    }
)
"""Keys below `tokenizer.ggml.`; the arrays and the `..._token_id` have rules of their own."""
_TOKEN_ARRAYS: Final = frozenset({"tokens", "scores", "token_type", "merges"})
_TOKEN_ID: Final = "_token_id"  # noqa: S105 - the end of a key, not a password
_REFUSED: Final = ("general.tensor_extra.", "adapter.", "xielu.", "tokenizer.rwkv.")
"""Keys outside of the two namespaces that llama.cpp acts on; none of them has a place in a Gemma."""


def check_keys(header: GgufHeader, n_vocab: int) -> None:
    """Check every key that llama.cpp may act on.

    Args:
        header: Of the base model.
        n_vocab: How many tokens it has.

    Raises:
        RejectedModel: A key is not known for this architecture, or has another type or value than it may have.
    """
    for key in header.metadata:
        if key == "general.alignment":
            _check(header, key, _ALIGNMENT)
        namespace, _, name = key.partition(".")
        if namespace == ARCHITECTURE:
            _check(header, key, _gemma_rule(header, name, n_vocab))
        elif key.startswith("tokenizer.ggml."):
            name = key.removeprefix("tokenizer.ggml.")
            if name not in _TOKEN_ARRAYS:
                _check(header, key, _tokenizer_rule(name, n_vocab))
        elif key.startswith(_REFUSED):
            raise RejectedModel(f"{header.path}: key {key!r} is not part of a {ARCHITECTURE} model")


def _gemma_rule(header: GgufHeader, name: str, n_vocab: int) -> Rule | None:
    if name == "vocab_size":
        return (ValueType.UINT32, lambda value: value == n_vocab, f"{n_vocab}, the number of tokens")
    if name == "rope.dimension_count":
        width = header.metadata.get(f"{ARCHITECTURE}.attention.key_length")
        return (ValueType.UINT32, lambda value: value == width, f"{width}, as {ARCHITECTURE}.attention.key_length")
    return _GEMMA.get(name)


def _tokenizer_rule(name: str, n_vocab: int) -> Rule | None:
    if name.endswith(_TOKEN_ID):
        return (ValueType.UINT32, lambda value: value < n_vocab, f"a UINT32 from 0 to {n_vocab - 1}")
    return _TOKENIZER.get(name)


def _check(header: GgufHeader, key: str, rule: Rule | None) -> None:
    if rule is None:
        raise RejectedModel(f"{header.path}: key {key!r} is not part of a {ARCHITECTURE} model")
    value_type, is_allowed, words = rule
    value = header.metadata[key]
    if header.value_types.get(key) is not value_type or not is_allowed(value):
        raise RejectedModel(f"{header.path}: {key} must be {words}, but is {str(value)[:100]!r}")
