"""Names, shapes and hyper-parameters of llama.cpp's architecture `gemma`. Pure; reads no file.

Sources: llama.cpp src/llama-model.cpp and gguf-py tensor_mapping.py (arch `gemma`); transformers.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

ARCHITECTURE: Final = "gemma"

DEFAULT_ROPE_THETA: Final = 10000.0  # llama.cpp's and transformers' default; only a different value is written

PROJECTIONS: Final = MappingProxyType(
    {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
)
"""Hugging Face module inside a layer -> GGUF weight inside a block: the seven that a LoRA may change."""

NORMS: Final = MappingProxyType({"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"})

START_OF_TURN: Final = "<start_of_turn>"
END_OF_TURN: Final = "<end_of_turn>"
TURN_TOKENS: Final = (START_OF_TURN, END_OF_TURN)
"""The control tokens of Gemma's chat template. They are known by their text, whatever type a file gives them."""

TOKEN_EMBEDDING: Final = "token_embd.weight"  # noqa: S105 - a tensor's name, not a password
OUTPUT_NORM: Final = "output_norm.weight"
BIASED: Final = frozenset({"attn_q", "attn_k", "attn_v"})  # the biases that arch gemma's loader accepts

_WRAPPERS: Final = frozenset({"_orig_mod", "module", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})
_PREFIXES: Final = frozenset({"base_model", "model", "language_model"})
_LAYER_MODULES: Final = MappingProxyType({**PROJECTIONS, **NORMS})
_TOP_NAMES: Final = MappingProxyType({"embed_tokens.weight": TOKEN_EMBEDDING, "norm.weight": OUTPUT_NORM})
_LAYER_NAME: Final = re.compile(r"layers\.(0|[1-9][0-9]{0,3})\.([a-z_.]+)\.(weight|bias)")
_BLOCK_NAME: Final = re.compile(r"blk\.([0-9]+)\.([a-z_]+)\.(weight|bias)")

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """The numbers that fix a Gemma's shapes and its arithmetic."""

    n_layers: int
    n_embd: int
    n_ff: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_vocab: int
    n_ctx: int
    rms_epsilon: float
    rope_theta: float = DEFAULT_ROPE_THETA
    rope_factor: float | None = None  # of linear position scaling
    has_attention_bias: bool = False
    has_tied_head: bool = True  # as every Gemma of Google's
    quantized_by: str | None = None  # what the configuration says of the weights, true or not

    def projection_shape(self, weight: str) -> tuple[int, int]:
        """Return (n_out, n_in) of one of the seven projections, by its GGUF name inside a block."""
        q, kv = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        return {
            "attn_q": (q, self.n_embd),
            "attn_k": (kv, self.n_embd),
            "attn_v": (kv, self.n_embd),
            "attn_output": (self.n_embd, q),
            "ffn_gate": (self.n_ff, self.n_embd),
            "ffn_up": (self.n_ff, self.n_embd),
            "ffn_down": (self.n_embd, self.n_ff),
        }[weight]

    def tensor_shapes(self) -> dict[str, Shape]:
        """Return every tensor of the GGUF, name -> shape with rows first (the reverse of ggml's `ne`)."""
        shapes: dict[str, Shape] = {TOKEN_EMBEDDING: (self.n_vocab, self.n_embd), OUTPUT_NORM: (self.n_embd,)}
        for layer in range(self.n_layers):
            for weight in PROJECTIONS.values():
                shapes[f"blk.{layer}.{weight}.weight"] = self.projection_shape(weight)
            for norm in NORMS.values():
                shapes[f"blk.{layer}.{norm}.weight"] = (self.n_embd,)
            if self.has_attention_bias:
                for weight in sorted(BIASED):
                    shapes[f"blk.{layer}.{weight}.bias"] = (self.projection_shape(weight)[0],)
        return shapes


def plain_name(hf_name: str) -> str:
    """Return a tensor's or module's name without the wrappers that the model had when it was saved.

    Leading `base_model.`, `model.` and `language_model.`, however often; and anywhere the wrappers of torch.compile
    (`_orig_mod`), DataParallel (`module`), FSDP and activation checkpointing.
    """
    parts = [part for part in hf_name.split(".") if part not in _WRAPPERS]
    first = next((i for i, part in enumerate(parts) if part not in _PREFIXES), len(parts))
    return ".".join(parts[first:])


def gguf_name(hf_name: str) -> str | None:
    """Return the GGUF name of a checkpoint's tensor, wrapped or not (see `plain_name`); None if it has none."""
    name = plain_name(hf_name)
    if name in _TOP_NAMES:
        return _TOP_NAMES[name]
    match = _LAYER_NAME.fullmatch(name)
    if match is None or match[2] not in _LAYER_MODULES:
        return None
    weight = _LAYER_MODULES[match[2]]
    if match[3] == "bias" and weight not in BIASED:
        return None
    return f"blk.{match[1]}.{weight}.{match[3]}"


def split_block_name(name: str) -> tuple[int, str] | None:
    """Split `blk.3.attn_q.weight` into (3, "attn_q"); None for a tensor outside the blocks."""
    match = _BLOCK_NAME.fullmatch(name)
    return None if match is None else (int(match[1]), match[2])


def is_norm(name: str) -> bool:
    """Say whether a GGUF tensor is a norm: stored as 1 + w, always in F32."""
    return name.endswith("norm.weight")


def is_projection(name: str) -> bool:
    """Say whether a GGUF tensor is one of the seven weights per block that a LoRA may change."""
    parts = split_block_name(name)
    return parts is not None and parts[1] in PROJECTIONS.values() and name.endswith(".weight")


def missing_or_unknown(found: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> str | None:
    """Compare a table of tensors with the wanted one; return what is wrong first, or None."""
    for name, shape in wanted.items():
        if name not in found:
            return f"tensor {name!r} is missing"
        if found[name] != shape:
            return f"tensor {name!r} has shape {list(found[name])}, but the model needs {list(shape)}"
    for name in found:
        if name not in wanted:
            return f"tensor {name!r} is not part of architecture {ARCHITECTURE}"
    return None
