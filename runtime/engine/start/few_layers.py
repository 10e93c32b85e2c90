"""A model of a few layers of another, with a vocabulary of bytes: its shapes and types at a part of its cost.

A Gemma's layers are alike but for the types of their weights, and what a batch costs grows with their number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from convert.gguf.header import GgufHeader, TensorInfo, ValueType
from convert.gguf.writer import FilePlan, KeyValue, TensorPlan, write_gguf
from convert.rules.gemma import ARCHITECTURE, OUTPUT_NORM, TOKEN_EMBEDDING

_CONTROL = ("<pad>", "<eos>", "<bos>", "<unk>")
_N_BYTES = 256
# llama.h, enum llama_token_type.
_UNKNOWN, _CONTROL_TYPE, _BYTE = 2, 3, 6
_CHUNK_BYTES = 16 << 20
_REPLACED = (f"{ARCHITECTURE}.block_count", f"{ARCHITECTURE}.vocab_size")


def choose_layers(base: GgufHeader, n_min: int) -> list[int]:
    """Layers to take: at least ``n_min`` if there are as many, and one of each mix of types.

    Args:
        base: the whole model's header.
        n_min: the fewest to take.
    """
    n_layers = base.integer(f"{ARCHITECTURE}.block_count") or 0
    by_types: dict[tuple[object, ...], int] = {}
    for layer in range(n_layers):
        by_types.setdefault(tuple(tensor.type for _, tensor in _tensors_of(base, layer)), layer)
    chosen = set(by_types.values())
    for layer in (n_layers - 1, *range(n_layers)):
        if len(chosen) >= n_min:
            break
        chosen.add(layer)
    return sorted(chosen)


def write_few_layers(path: Path, base: GgufHeader, layers: Sequence[int]) -> None:
    """Write a model of these layers.

    Raises:
        OutputProblem: the disk is full, or refuses.
        OSError: the whole model cannot be read.
    """
    write_gguf(path, FilePlan(_metadata(base, len(layers)), list(_plans(base, layers))))


def _metadata(base: GgufHeader, n_layers: int) -> list[KeyValue]:
    kept = [
        KeyValue(key, base.value_types[key], value)
        for key, value in base.metadata.items()
        if key.startswith(f"{ARCHITECTURE}.") and key not in _REPLACED and isinstance(value, str | int | float)
    ]
    tokens = [*_CONTROL, *(f"<0x{byte:02X}>" for byte in range(_N_BYTES))]
    types = [_CONTROL_TYPE] * 3 + [_UNKNOWN] + [_BYTE] * _N_BYTES
    return [
        KeyValue("general.architecture", ValueType.STRING, ARCHITECTURE),
        KeyValue(f"{ARCHITECTURE}.block_count", ValueType.UINT32, n_layers),
        *kept,
        KeyValue("tokenizer.ggml.model", ValueType.STRING, "llama"),
        KeyValue("tokenizer.ggml.tokens", ValueType.ARRAY, [token.encode() for token in tokens]),
        KeyValue("tokenizer.ggml.scores", ValueType.ARRAY, np.zeros(len(tokens), np.float32)),
        KeyValue("tokenizer.ggml.token_type", ValueType.ARRAY, np.array(types, np.int32)),
        *(
            KeyValue(f"tokenizer.ggml.{name}_token_id", ValueType.UINT32, number)
            for number, name in enumerate(("padding", "eos", "bos", "unknown"))
        ),
    ]


def _plans(base: GgufHeader, layers: Sequence[int]) -> Iterator[TensorPlan]:
    n_tokens = len(_CONTROL) + _N_BYTES
    yield _plan_embedding(base.path, base.tensors[TOKEN_EMBEDDING], n_tokens)
    yield _plan(OUTPUT_NORM, base.path, base.tensors[OUTPUT_NORM])
    for number, layer in enumerate(layers):
        for name, tensor in _tensors_of(base, layer):
            yield _plan(f"blk.{number}.{name}", base.path, tensor)


def _tensors_of(base: GgufHeader, layer: int) -> list[tuple[str, TensorInfo]]:
    """A layer's tensors and their names within it."""
    prefix = f"blk.{layer}."
    return sorted((name.removeprefix(prefix), base.tensors[name]) for name in base.tensors if name.startswith(prefix))


def _plan_embedding(path: Path, tensor: TensorInfo, n_rows: int) -> TensorPlan:
    """Rows from all over the vocabulary: the first hundred of a Gemma's are unused, and alike."""
    n_columns, n_all = tensor.shape
    row_bytes = tensor.type.row_size_bytes(n_columns)

    def chunks() -> Iterator[npt.NDArray[np.uint8]]:
        with path.open("rb") as file:
            for row in range(n_rows):
                file.seek(tensor.offset + row_bytes * (row * n_all // n_rows))
                yield np.frombuffer(file.read(row_bytes), np.uint8)

    return TensorPlan(TOKEN_EMBEDDING, tensor.type, (n_rows, n_columns), chunks)


def _plan(name: str, path: Path, tensor: TensorInfo) -> TensorPlan:
    """A tensor of the new file, with the bytes of the old one."""

    def chunks() -> Iterator[npt.NDArray[np.uint8]]:
        with path.open("rb") as file:
            file.seek(tensor.offset)
            for start in range(0, tensor.size_bytes, _CHUNK_BYTES):
                yield np.frombuffer(file.read(min(_CHUNK_BYTES, tensor.size_bytes - start)), np.uint8)

    return TensorPlan(name, tensor.type, tensor.shape[::-1], chunks)
