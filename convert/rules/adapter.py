"""The rules a GGUF adapter's header must keep before llama.cpp may see the file. Reads no weights.

llama.cpp aborts the process on some adapter files and silently mis-applies others; once it runs, neither can be caught.

Sources: llama.cpp src/llama-adapter.cpp and ggml/src/gguf.cpp, as of the libllama in llama-cpp-python 0.3.36.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from convert.errors import RejectedAdapter
from convert.gguf.header import ArrayInfo, GgufHeader, TensorInfo, ValueType
from convert.gguf.types import ADAPTER_TYPES
from convert.rules.gemma import ARCHITECTURE, is_projection, split_block_name
from convert.rules.names import names_differ

ALPHA_KEY: Final = "adapter.lora.alpha"
BASE_NAME_KEY: Final = "general.base_model.0.name"
BASE_DIGEST_KEY: Final = "gemlane.base.sha256"
INVOCATION_KEY: Final = "adapter.alora.invocation_tokens"
MAX_INVOCATION_TOKENS: Final = 256  # real ones have 2 to 10
MAX_RANK: Final = 4096  # real adapters have 4 to 256; beyond the width of the weights a rank means nothing


@dataclass(frozen=True, slots=True)
class AdapterSummary:
    """What a valid adapter is: enough to list it and to plan memory for it.

    `alpha` is None where the file carries no factor of its own: then the user's scale alone counts.
    `invocation_tokens` are those of an activated LoRA (aLoRA), which applies from their last occurrence in the prompt
    on; empty for a LoRA that applies to every token. `warnings` are for the user: what may make it useless.
    """

    path: Path
    size_bytes: int
    tensor_bytes: int
    n_pairs: int
    max_rank: int
    alpha: float | None
    target_modules: tuple[str, ...]
    layers: tuple[int, ...]
    types: tuple[str, ...]
    base_sha256: str | None
    invocation_tokens: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()


def check_adapter(header: GgufHeader, base: GgufHeader) -> AdapterSummary:
    """Check an adapter's header against its base's, without reading any weight.

    Raises:
        RejectedAdapter: A rule is broken; the message names the key or tensor.
    """
    _check_keys(header, base)
    pairs = _pairs(header)
    for name, (a, b) in pairs.items():
        _check_pair(header, base, name, a, b)
    blocks = [split for split in map(split_block_name, pairs) if split is not None]
    return AdapterSummary(
        path=header.path,
        size_bytes=header.size_bytes,
        tensor_bytes=sum(tensor.size_bytes for tensor in header.tensors.values()),
        n_pairs=len(pairs),
        max_rank=max(b.shape[0] for _, b in pairs.values()),
        alpha=header.number(ALPHA_KEY) or None,
        target_modules=tuple(sorted({weight for _, weight in blocks})),
        layers=tuple(sorted({layer for layer, _ in blocks})),
        types=header.tensor_types(),
        base_sha256=header.string(BASE_DIGEST_KEY),
        invocation_tokens=_invocation_tokens(header, base),
        warnings=_warnings(header, base),
    )


def _warnings(header: GgufHeader, base: GgufHeader) -> tuple[str, ...]:
    made_for, name = header.string(BASE_NAME_KEY), base.string("general.name")
    return (f"made for {made_for}, but the base is {name}",) if names_differ(made_for, name) else ()


def _check_keys(header: GgufHeader, base: GgufHeader) -> None:
    path = header.path
    architecture = base.string("general.architecture") or ARCHITECTURE
    wanted = {"general.type": "adapter", "adapter.type": "lora", "general.architecture": architecture}
    for key, value in wanted.items():
        if header.value_types.get(key) is not ValueType.STRING:  # llama.cpp aborts on another type
            raise RejectedAdapter(f"{path}: {key} must be the string {value!r}")
        if header.metadata[key] != value:
            raise RejectedAdapter(f"{path}: {key} is {header.metadata[key]!r}, but must be {value!r}")
    if ALPHA_KEY in header.metadata:
        alpha = header.metadata[ALPHA_KEY]
        if header.value_types[ALPHA_KEY] is not ValueType.FLOAT32 or not isinstance(alpha, float):
            raise RejectedAdapter(
                f"{path}: {ALPHA_KEY} has type {header.value_types[ALPHA_KEY].name}, but must be FLOAT32"
            )
        if not (math.isfinite(alpha) and alpha > 0.0):
            raise RejectedAdapter(f"{path}: {ALPHA_KEY} is {alpha}, but must be finite and above 0, or absent")
    unknown = [key for key in header.metadata if key.startswith("adapter.alora.") and key != INVOCATION_KEY]
    if unknown:
        raise RejectedAdapter(f"{path}: {min(unknown)[:80]}: an activated LoRA (aLoRA) of an unknown kind")
    if "split.count" in header.metadata:
        raise RejectedAdapter(f"{path}: one part of a split file; adapters must be whole")


def _invocation_tokens(header: GgufHeader, base: GgufHeader) -> tuple[int, ...]:
    """Return the invocation tokens of an aLoRA; llama.cpp aborts on another type (llama-adapter.cpp)."""
    tokens = header.metadata.get(INVOCATION_KEY)
    if tokens is None:
        return ()
    path, embedding = header.path, base.tensors.get("token_embd.weight")
    if not isinstance(tokens, ArrayInfo) or tokens.item_type is not ValueType.UINT32:
        raise RejectedAdapter(f"{path}: {INVOCATION_KEY} must be an array of UINT32")
    if not 1 <= tokens.length <= MAX_INVOCATION_TOKENS:
        allowed = f"1 to {MAX_INVOCATION_TOKENS}"
        raise RejectedAdapter(f"{path}: {INVOCATION_KEY} has {tokens.length} tokens instead of {allowed}")
    n_vocab = embedding.shape[-1] if embedding is not None else 0
    if (largest := max(tokens.integers)) >= n_vocab:
        raise RejectedAdapter(f"{path}: {INVOCATION_KEY} holds {largest}, but the base has {n_vocab} tokens")
    return tokens.integers


def _pairs(header: GgufHeader) -> dict[str, tuple[TensorInfo, TensorInfo]]:
    """Return base tensor name -> (A, B); every tensor must belong to a pair."""
    names = set()
    for name in header.tensors:
        base_name, dot, half = name.rpartition(".")
        if not dot or half not in ("lora_a", "lora_b"):
            raise RejectedAdapter(f"{header.path}: tensor {name!r} is neither a lora_a nor a lora_b")
        names.add(base_name)
    pairs = {}
    for name in sorted(names):
        halves = header.tensors.get(f"{name}.lora_a"), header.tensors.get(f"{name}.lora_b")
        if halves[0] is None or halves[1] is None:
            raise RejectedAdapter(f"{header.path}: {name!r} has only one of lora_a and lora_b")
        pairs[name] = (halves[0], halves[1])
    if not pairs:
        raise RejectedAdapter(f"{header.path}: the adapter holds no tensors")
    return pairs


def _check_pair(header: GgufHeader, base: GgufHeader, name: str, a: TensorInfo, b: TensorInfo) -> None:
    path = header.path
    if not is_projection(name):
        raise RejectedAdapter(f"{path}: {name!r} is not one of the weights that a LoRA on Gemma can change")
    if name not in base.tensors:
        raise RejectedAdapter(f"{path}: {name!r} does not exist in the base {base.path}")
    for tensor in (a, b):
        if len(tensor.shape) != 2:
            raise RejectedAdapter(f"{path}: {tensor.name!r} has {len(tensor.shape)} dimensions instead of 2")
        if tensor.type not in ADAPTER_TYPES:
            raise RejectedAdapter(f"{path}: {tensor.name!r} has type {tensor.type.name}, which is not for adapters")
    (n_in, rank), (b_rank, n_out) = a.shape, b.shape
    if rank != b_rank:
        raise RejectedAdapter(f"{path}: {name!r} has rank {rank} in lora_a but {b_rank} in lora_b")
    if rank > MAX_RANK:
        raise RejectedAdapter(f"{path}: {name!r} has rank {rank}, but at most {MAX_RANK} is allowed")
    if (n_in, n_out) != base.tensors[name].shape:
        wanted = list(base.tensors[name].shape)
        raise RejectedAdapter(f"{path}: {name!r} is made for a weight of {[n_in, n_out]}, but the base has {wanted}")
