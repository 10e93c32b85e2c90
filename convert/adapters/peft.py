"""The PEFT dialect: `adapter_config.json` and `adapter_model.safetensors`, of PEFT, TRL, Unsloth and others.

Everything that would be silently wrong as a GGUF LoRA is refused by name.

Source: peft tuners/lora/layer.py, tuners/trainable_tokens/layer.py, utils/save_and_load.py.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from convert.adapters.adapter import LoraAdapter, check_magnitudes
from convert.adapters.embedding import TrainedEmbedding, TrainedMatrix
from convert.adapters.pair import LoraPair
from convert.adapters.peft_config import CONFIG_NAME, NO_REMEDY, PeftConfig, read_peft_config
from convert.errors import TensorMismatch, UnsupportedAdapter
from convert.rules.gemma import PROJECTIONS, gguf_name, plain_name
from convert.tensors.safetensors import EMPTY, SafetensorsFile
from convert.tensors.sources import StoredRows, TransposedRows

WEIGHTS_NAME: Final = "adapter_model.safetensors"
_MAGNITUDE: Final = "lora_magnitude_vector"
_EMBEDDING: Final = "embed_tokens"
_HEAD: Final = "lm_head"
_WEIGHT: Final = re.compile(
    r"layers\.(?P<layer>0|[1-9][0-9]{0,3})\.(?P<module>self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj)"
    r"\.(?:(?P<half>lora_A|lora_B)(?:\.[^.]+)?\.weight|lora_magnitude_vector(?:\.[^.]+)?(?:\.weight)?)"
)
_NORM: Final = re.compile(
    r"(?P<norm>(?:layers\.[0-9]+\.(?:input|post_attention)_layernorm|norm))(?:\.modules_to_save(?:\.[^.]+)?)?\.weight"
)
# What PEFT saves of the token embedding and of the output head; the group's name is the part of `_Tensors.matrices`.
_MATRIX: Final = re.compile(
    r"(?P<side>embed_tokens|lm_head)\.(?:"
    r"(?P<whole>weight|(?:token_adapter\.)?base_layer\.weight)|(?P<saved>modules_to_save(?:\.[^.]+)?\.weight)|"
    r"(?P<tokens>token_adapter\.trainable_tokens_delta(?:\.[^.]+)?)|(?P<original>original_module\.weight)|"
    r"lora_(?:embedding_)?(?P<half>[AB])(?:\.[^.]+)??(?:\.weight)?)"
)


@dataclass(frozen=True, slots=True)
class _Tensors:
    """The keys of an adapter's file, sorted by what they are."""

    parts: dict[str, dict[str, str]] = field(default_factory=dict)  # GGUF weight -> half or magnitude -> key
    modules: dict[str, str] = field(default_factory=dict)  # GGUF weight -> module
    norms: dict[str, str] = field(default_factory=dict)  # GGUF norm -> key
    matrices: dict[str, dict[str, str]] = field(default_factory=dict)  # embed_tokens or lm_head -> part -> key


def read_peft(path: Path, file: SafetensorsFile) -> LoraAdapter:
    """Read a PEFT adapter; the weights stay in `file`, which must stay open.

    Args:
        path: What the user named; errors and the result's name use it.
        file: Its weights, beside its `adapter_config.json`.

    Raises:
        MalformedJson: The configuration cannot be read or lacks a number.
        UnsupportedAdapter: A feature that cannot be represented, named.
        TensorMismatch: Tensors and configuration disagree, or a half pair.
    """
    config = read_peft_config(file.path.parent / CONFIG_NAME)
    tensors = _sort(file)
    pairs = {name: _pair(file, name, keys, tensors.modules[name], config) for name, keys in tensors.parts.items()}
    magnitudes = {
        name: StoredRows(file, keys[_MAGNITUDE]) for name, keys in tensors.parts.items() if _MAGNITUDE in keys
    }
    check_magnitudes(config.path, pairs, magnitudes, is_dora=config.uses_dora)
    return LoraAdapter(
        path=path,
        pairs=pairs,
        base_name=config.base_name,
        magnitudes=magnitudes,
        norms={name: StoredRows(file, key) for name, key in tensors.norms.items()},
        embedding=_embedding(path, file, tensors.matrices, config),
        warnings=(*config.warnings, *_unsaved(config, tensors)),
        invocation_tokens=config.invocation_tokens,
    )


def _sort(file: SafetensorsFile) -> _Tensors:
    """Sort the keys of the file by what they are.

    Raises:
        UnsupportedAdapter: A tensor does not belong to a LoRA on Gemma.
        TensorMismatch: Two keys name the same part.
    """
    tensors = _Tensors()
    for key in file.tensors:
        bare = plain_name(key)
        if 0 in file.tensors[key].shape:
            raise TensorMismatch(f"{file.path}: {key!r} {EMPTY}")
        if (match := _WEIGHT.fullmatch(bare)) is not None:
            name = f"blk.{match['layer']}.{PROJECTIONS[match['module']]}.weight"
            tensors.modules[name] = f"model.layers.{match['layer']}.{match['module']}"
            _put(file, tensors.parts.setdefault(name, {}), match["half"] or _MAGNITUDE, key, name)
        elif (match := _NORM.fullmatch(bare)) is not None:
            name = str(gguf_name(match["norm"] + ".weight"))
            _put(file, tensors.norms, name, key, name)
        elif (match := _MATRIX.fullmatch(bare)) is not None:
            part = match["half"] or next(name for name in ("whole", "saved", "tokens", "original") if match[name])
            part = "base" if "base_layer" in bare else part
            _put(file, tensors.matrices.setdefault(match["side"], {}), part, key, match["side"])
        elif not bare.endswith(".base_layer.weight"):  # PEFT saves the untouched base matrix beside some LoRAs
            raise UnsupportedAdapter(f"{file.path}: {key!r}: {_why_not(bare)}")
    return tensors


def _put(file: SafetensorsFile, parts: dict[str, str], part: str, key: str, name: str) -> None:
    if parts.setdefault(part, key) != key:
        what = repr(name) if part == name else f"{part} of {name!r}"
        raise TensorMismatch(f"{file.path}: {what} is there twice")


def _pair(file: SafetensorsFile, name: str, parts: Mapping[str, str], module: str, config: PeftConfig) -> LoraPair:
    if "lora_A" not in parts or "lora_B" not in parts:
        raise TensorMismatch(f"{file.path}: {name!r} has only one of lora_A and lora_B")
    a, b = StoredRows(file, parts["lora_A"]), StoredRows(file, parts["lora_B"])
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
        raise TensorMismatch(f"{file.path}: {name!r} has lora_A {list(a.shape)} and lora_B {list(b.shape)}")
    return LoraPair(a, b, config.alpha_of(module, a.shape[0]))


def _embedding(
    path: Path, file: SafetensorsFile, matrices: Mapping[str, Mapping[str, str]], config: PeftConfig
) -> TrainedEmbedding | None:
    """Return what was trained of the embedding and of the head; None if neither was saved.

    The checkpoint ties both, so an embedding that is saved alone is that of both. Two exceptions: PEFT trained a copy
    for the input (modules_to_save), or added a LoRA to the input, and was not asked to tie them. If modules_to_save
    names both and the file holds one, the writer has saved tied weights once, as mergekit does.
    """
    embedding = _matrix(file, _EMBEDDING, matrices.get(_EMBEDDING, {}), config)
    head = _matrix(file, _HEAD, matrices.get(_HEAD, {}), config)
    if embedding is None and head is None:
        return None
    is_copy = embedding is not None and (
        embedding.pair is not None or (_EMBEDDING in config.saved_modules and _HEAD not in config.saved_modules)
    )
    if head is None and (config.ties_embeddings or not is_copy):
        head = embedding
    return TrainedEmbedding(path, embedding, head)


def _matrix(file: SafetensorsFile, side: str, parts: Mapping[str, str], config: PeftConfig) -> TrainedMatrix | None:
    has_pair, has_tokens = "A" in parts or "B" in parts, "tokens" in parts
    whole = parts.get("whole") or parts.get("saved") or (parts.get("base") if has_pair or has_tokens else None)
    if whole is None and not has_pair and not has_tokens:
        return None
    rows = StoredRows(file, parts["tokens"]) if has_tokens else None
    if rows is not None and (len(rows.shape) != 2 or rows.shape[0] != len(config.trained_token_ids)):
        raise TensorMismatch(
            f"{file.path}: {parts['tokens']!r} has shape {list(rows.shape)}, but trainable_token_indices names "
            f"{len(config.trained_token_ids)} tokens"
        )
    return TrainedMatrix(
        whole=StoredRows(file, whole) if whole is not None else None,
        token_ids=config.trained_token_ids if has_tokens else (),
        token_rows=rows,
        pair=_matrix_pair(file, side, parts, config) if has_pair else None,
    )


def _matrix_pair(file: SafetensorsFile, side: str, parts: Mapping[str, str], config: PeftConfig) -> LoraPair:
    """Return the pair of a LoRA on the embedding or the head, as a change of the (n_vocab, n_embd) matrix."""
    if "A" not in parts or "B" not in parts:
        raise TensorMismatch(f"{file.path}: {side!r} has only one half of a LoRA")
    a, b = StoredRows(file, parts["A"]), StoredRows(file, parts["B"])
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
        raise TensorMismatch(f"{file.path}: {side!r} has a LoRA of {list(a.shape)} and {list(b.shape)}")
    alpha = config.alpha_of(f"model.{_EMBEDDING}" if side == _EMBEDDING else _HEAD, a.shape[0])
    if side == _HEAD:
        return LoraPair(a, b, alpha)
    return LoraPair(TransposedRows(b), TransposedRows(a), alpha)  # PEFT keeps an embedding's halves transposed


def _unsaved(config: PeftConfig, tensors: _Tensors) -> Iterator[str]:
    """Warn of modules that should have been saved and were not: their training is lost."""
    saved = {key.removesuffix(".weight").split(".")[-1] for key in map(plain_name, tensors.norms.values())}
    saved |= tensors.matrices.keys()
    if config.saved_modules and not saved.intersection(name.split(".")[-1] for name in config.saved_modules):
        names = ", ".join(config.saved_modules)
        yield f"modules_to_save names {names}, but no such tensor is in the file: if it was trained, that is lost"
    if config.trained_token_ids and not tensors.matrices:
        yield "trainable_token_indices names tokens, but none of their rows is in the file: their training is lost"


def _why_not(bare: str) -> str:
    """Name the reason why a tensor cannot be part of a LoRA on Gemma."""
    for mark, reason in (
        ("embed_tokens", f"an unknown way of training the token embedding; {NO_REMEDY}"),
        ("lm_head", f"an unknown way of training the output head; {NO_REMEDY}"),
        (".bias", f"trained biases; {NO_REMEDY}"),
        ("lora_a", "an MLX adapter under PEFT's file name; its configuration must be MLX's too"),
        ("score.", "the head of a classifier; gemlane serves models that generate text"),
        ("v_head.", "the value head of a reward model; gemlane serves models that generate text"),
        ("prompt_embeddings", "a trained prompt (prompt tuning), which is not a LoRA"),
    ):
        if mark in bare:
            return reason
    return "not a LoRA tensor of a weight of Gemma"
