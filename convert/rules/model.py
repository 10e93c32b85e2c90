"""The rules a base model's GGUF header must keep before llama.cpp may see the file. Reads no weights.

Sources: llama.cpp src/llama-model.cpp and src/llama-vocab.cpp, as of the libllama in llama-cpp-python 0.3.36.
"""

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from convert.errors import RejectedModel
from convert.files import open_regular, read_at
from convert.gguf.header import ArrayInfo, GgufHeader, ValueType
from convert.gguf.types import MULTIPLIABLE, GgmlType
from convert.rules.gemma import (
    ARCHITECTURE,
    DEFAULT_ROPE_THETA,
    START_OF_TURN,
    TURN_TOKENS,
    Hyperparameters,
    missing_or_unknown,
)
from convert.rules.keys import check_keys

NO_TURN_TOKENS: Final = (
    "the vocabulary has no {}: chat is refused, since this program writes Gemma's turns; raw prompts are answered"
)
OTHER_TEMPLATE: Final = (
    "its chat_template is not Gemma's (it never writes <start_of_turn>), but chat is served in Gemma's template; if it "
    "was trained on another, send raw prompts"
)
_NO_SPACE_KEY: Final = (
    "tokenizer.ggml.add_space_prefix is missing, as in files of spring 2024; it is taken as false, which is right for "
    "every Gemma"
)
_SAMPLE_BYTES: Final = 512
_CONTROL: Final = 3  # llama.h LLAMA_TOKEN_TYPE_CONTROL


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """What a valid base model is.

    `has_turn_tokens` says whether chat is possible at all; `warnings` are for the user: what may make answers worse.
    """

    path: Path
    size_bytes: int
    name: str | None
    hyperparameters: Hyperparameters
    n_parameters: int
    types: tuple[str, ...]
    has_chat_template: bool
    has_turn_tokens: bool = True
    warnings: tuple[str, ...] = ()


def check_model(header: GgufHeader) -> ModelSummary:
    """Check a base model's keys, vocabulary and tensor table.

    Raises:
        RejectedModel: A rule is broken; the message names the key or tensor.
    """
    path = header.path
    _check_strings(header)
    token_ids = _check_vocabulary(header)
    n_vocab = len(token_ids)
    hyperparameters = _hyperparameters(header, n_vocab)
    check_keys(header, n_vocab)
    shapes = {name: tensor.shape[::-1] for name, tensor in header.tensors.items()}
    wrong = missing_or_unknown(shapes, hyperparameters.tensor_shapes())
    if wrong is not None:
        raise RejectedModel(f"{path}: {wrong}")
    for tensor in header.tensors.values():
        if len(tensor.shape) == 1 and tensor.type is not GgmlType.F32:  # ggml's element-wise kernels abort on others
            raise RejectedModel(f"{path}: vector {tensor.name!r} has type {tensor.type.name}, but must be F32")
        if tensor.type not in MULTIPLIABLE:
            raise RejectedModel(f"{path}: tensor {tensor.name!r} has type {tensor.type.name}: no arithmetic for it")
    return ModelSummary(
        path=path,
        size_bytes=header.size_bytes,
        name=header.string("general.name"),
        hyperparameters=hyperparameters,
        n_parameters=sum(math.prod(shape) for shape in shapes.values()),
        types=header.tensor_types(),
        has_chat_template=header.string("tokenizer.chat_template") is not None,
        has_turn_tokens=all(text.encode() in token_ids for text in TURN_TOKENS),
        warnings=tuple(_warnings(header, token_ids)),
    )


def _hollow(header: GgufHeader) -> list[str]:
    """Return the matrices that hold nothing but zero bytes at their start, middle and end."""
    hollow = []
    with open_regular(header.path) as file:
        for tensor in header.tensors.values():
            n_bytes = min(_SAMPLE_BYTES, tensor.size_bytes)
            last = tensor.size_bytes - n_bytes
            samples = (read_at(file, tensor.offset + start, n_bytes) for start in (0, last // 2, last))
            if len(tensor.shape) > 1 and not any(map(any, samples)):
                hollow.append(tensor.name)
    return hollow


def _warnings(header: GgufHeader, token_ids: Mapping[bytes, int]) -> Iterator[str]:
    hollow = _hollow(header)
    if hollow:
        yield (
            f"{len(hollow)} of its matrices look like nothing but zeros, {hollow[0]!r} first: was it downloaded or "
            "copied to its end?"
        )
    if "tokenizer.ggml.add_space_prefix" not in header.metadata:
        yield _NO_SPACE_KEY
    missing = [text for text in TURN_TOKENS if text.encode() not in token_ids]
    if missing:
        yield NO_TURN_TOKENS.format(" and no ".join(missing))
        return
    types = _array(header, "token_type", ValueType.INT32)
    with open_regular(header.path) as file:
        numbers = read_at(file, types.offset, 4 * types.length)
    for text in TURN_TOKENS:
        (number,) = struct.unpack_from("<i", numbers, 4 * token_ids[text.encode()])
        if number != _CONTROL:
            yield f"the file does not mark {text} as a control token; it is taken as one all the same"
    template = header.string("tokenizer.chat_template")
    if template is not None and START_OF_TURN not in template:
        yield OTHER_TEMPLATE


def _check_strings(header: GgufHeader) -> None:
    if header.metadata.get("general.type") == "adapter":
        raise RejectedModel(f"{header.path} is a LoRA adapter, not a base model")
    for key, value in {"general.architecture": ARCHITECTURE, "tokenizer.ggml.model": "llama"}.items():
        if header.value_types.get(key) is not ValueType.STRING:
            raise RejectedModel(f"{header.path}: {key} must be the string {value!r}")
        if header.metadata[key] != value:
            raise RejectedModel(f"{header.path}: {key} is {header.metadata[key]!r}, but must be {value!r}")
    if header.metadata.get("general.type", "model") != "model":
        raise RejectedModel(f"{header.path}: general.type is {header.metadata['general.type']!r}, not 'model'")
    if header.integer("split.count") not in (None, 0, 1):
        raise RejectedModel(f"{header.path}: one part of a split model; join the parts with gguf-split first")


def _hyperparameters(header: GgufHeader, n_vocab: int) -> Hyperparameters:
    def count(key: str) -> int:
        value = header.metadata.get(f"{ARCHITECTURE}.{key}")
        wrong_type = header.value_types.get(f"{ARCHITECTURE}.{key}") is not ValueType.UINT32
        if wrong_type or not isinstance(value, int) or not 1 <= value <= 1 << 24:
            raise RejectedModel(f"{header.path}: {ARCHITECTURE}.{key} must be a UINT32 of at least 1, but is {value!r}")
        return value

    def real(key: str, default: float | None = None) -> float:
        value = header.metadata.get(f"{ARCHITECTURE}.{key}", default)
        if not isinstance(value, float) or not math.isfinite(value) or value <= 0.0:
            raise RejectedModel(f"{header.path}: {ARCHITECTURE}.{key} must be a float above 0, but is {value!r}")
        return value

    n_layers = count("block_count")
    if n_layers > len(header.tensors):
        raise RejectedModel(f"{header.path}: {n_layers} blocks, but only {len(header.tensors)} tensors")
    if count("attention.key_length") != count("attention.value_length"):
        raise RejectedModel(f"{header.path}: {ARCHITECTURE}.attention.key_length and .value_length differ")
    return Hyperparameters(
        n_layers=n_layers,
        n_embd=count("embedding_length"),
        n_ff=count("feed_forward_length"),
        n_heads=count("attention.head_count"),
        n_kv_heads=count("attention.head_count_kv"),
        head_dim=count("attention.key_length"),
        n_vocab=n_vocab,
        n_ctx=count("context_length"),
        rms_epsilon=real("attention.layer_norm_rms_epsilon"),
        rope_theta=real("rope.freq_base", DEFAULT_ROPE_THETA),
        rope_factor=real("rope.scaling.factor", 1.0),
        has_attention_bias="blk.0.attn_q.bias" in header.tensors,
    )


def _check_vocabulary(header: GgufHeader) -> dict[bytes, int]:
    """Check what llama.cpp would abort on, at load or at the first odd character typed; return the ids by text."""
    path = header.path
    arrays = {
        "tokens": _array(header, "tokens", ValueType.STRING),
        "scores": _array(header, "scores", ValueType.FLOAT32),
        "token_type": _array(header, "token_type", ValueType.INT32),
    }
    n_vocab = arrays["tokens"].length
    for key, array in arrays.items():
        if array.length != n_vocab or n_vocab == 0:
            raise RejectedModel(f"{path}: tokenizer.ggml.{key} has {array.length} items for {n_vocab} tokens")
    tokens = _read_tokens(header, arrays["tokens"])
    if len(tokens) != n_vocab:
        raise RejectedModel(f"{path}: tokenizer.ggml.tokens holds the same text twice")
    _check_texts(path, tokens)
    for key in ("bos", "eos"):
        token_id = header.integer(f"tokenizer.ggml.{key}_token_id")
        if token_id is None or not 0 <= token_id < n_vocab:
            raise RejectedModel(f"{path}: tokenizer.ggml.{key}_token_id is {token_id}, not from 0 to {n_vocab - 1}")
    if header.metadata.get("tokenizer.ggml.add_space_prefix", False) is not False:
        raise RejectedModel(f"{path}: tokenizer.ggml.add_space_prefix must be false, or prompts tokenise differently")
    return tokens


def _check_texts(path: Path, tokens: Mapping[bytes, int]) -> None:
    for text, token_id in tokens.items():
        if not text or b"\0" in text:  # llama.cpp cuts a text at its NUL, and never ends on an empty one
            raise RejectedModel(f"{path}: tokenizer.ggml.tokens holds {text[:40]!r} as token {token_id}")
    for byte in range(256):
        if b"<0x%02X>" % byte not in tokens:
            raise RejectedModel(f"{path}: tokenizer.ggml.tokens lacks the byte token <0x{byte:02X}>")


def _array(header: GgufHeader, key: str, item_type: ValueType) -> ArrayInfo:
    array = header.metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(array, ArrayInfo) or array.item_type is not item_type:
        raise RejectedModel(f"{header.path}: tokenizer.ggml.{key} must be an array of {item_type.name}")
    return array


def _read_tokens(header: GgufHeader, array: ArrayInfo) -> dict[bytes, int]:
    with open_regular(header.path) as file:
        window = read_at(file, array.offset, header.data_offset - array.offset)
    tokens, position = {}, 0
    for token_id in range(array.length):
        (n_bytes,) = struct.unpack_from("<Q", window, position)
        tokens[window[position + 8 : position + 8 + n_bytes]] = token_id
        position += 8 + n_bytes
    return tokens
