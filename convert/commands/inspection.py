"""Says what a file or folder is, from its headers alone: no weight is read, no array built, no numpy loaded."""

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from convert.checkpoint.base import read_base
from convert.checkpoint.config import MAX_CONFIG_BYTES, read_hyperparameters
from convert.errors import ConvertError
from convert.files import open_regular, read_json_object
from convert.folders import ADAPTER_CONFIG_NAME, CONFIG_NAME, snapshot_folder, unknown_folder
from convert.gguf.header import ArrayInfo, GgufHeader, read_header
from convert.models.mix import MODEL_TYPES
from convert.rules.adapter import ALPHA_KEY, BASE_DIGEST_KEY, INVOCATION_KEY, check_adapter
from convert.rules.gemma import split_block_name
from convert.rules.model import check_model
from convert.tensors.safetensors_header import SourceTensor, read_tensor_table

Facts = dict[str, object]


def inspect(path: Path, base_path: Path | None = None) -> Facts:
    """Return what `path` is, as JSON can hold it; an adapter is also checked against the base, if one is given.

    Raises:
        ConvertError: It cannot be read. A broken rule is not an error, but the value of `problem`.
    """
    if path.is_dir():
        return _directory(path)
    if path.suffix == ".safetensors":
        with open_regular(path) as file:
            tensors = read_tensor_table(file, path)
        return {"kind": "safetensors", "path": str(path)} | _stored(tensors)
    header = read_header(path)
    facts: Facts = {"kind": header.string("general.type") or "model", "path": str(path)}
    facts |= {"name": header.string("general.name"), "architecture": header.string("general.architecture")}
    facts |= _adapter(header, base_path) if facts["kind"] == "adapter" else _model(header) | _judged(header)
    types = Counter(tensor.type.name for tensor in header.tensors.values())
    return facts | {"tensors": dict(sorted(types.items())), "size_bytes": header.size_bytes}


def _judged(header: GgufHeader) -> Facts:
    """Return what the server would refuse about a model, or warn of."""
    try:
        return {"warnings": list(check_model(header).warnings) or None}
    except ConvertError as error:
        return {"problem": str(error)}


def _model(header: GgufHeader) -> Facts:
    numbers = {one.number: one.name for one in MODEL_TYPES.values()}
    file_type = header.integer("general.file_type")
    prefix = header.string("general.architecture") or ""
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    return {
        "type": numbers.get(-1 if file_type is None else file_type, file_type),
        "parameters": sum(math.prod(tensor.shape) for tensor in header.tensors.values()),
        "layers": header.integer(f"{prefix}.block_count"),
        "width": header.integer(f"{prefix}.embedding_length"),
        "heads": header.integer(f"{prefix}.attention.head_count"),
        "kv_heads": header.integer(f"{prefix}.attention.head_count_kv"),
        "context": header.integer(f"{prefix}.context_length"),
        "vocabulary": tokens.length if isinstance(tokens, ArrayInfo) else None,
        "chat_template": header.string("tokenizer.chat_template") is not None,
    }


def _adapter(header: GgufHeader, base_path: Path | None) -> Facts:
    pairs = [name.removesuffix(".lora_b") for name in header.tensors if name.endswith(".lora_b")]
    blocks = [block for block in map(split_block_name, pairs) if block is not None]
    facts: Facts = {
        "alpha": header.number(ALPHA_KEY),
        "ranks": sorted({header.tensors[f"{name}.lora_b"].shape[0] for name in pairs}),
        "modules": sorted({weight for _, weight in blocks}),
        "layers": len({layer for layer, _ in blocks}),
        "base_sha256": header.string(BASE_DIGEST_KEY),
    }
    invocation = header.metadata.get(INVOCATION_KEY)
    if isinstance(invocation, ArrayInfo):
        facts["invocation_tokens"] = list(invocation.integers)
    if base_path is not None:
        try:
            summary = check_adapter(header, read_base(base_path))
            facts |= {"fits_base": True, "warnings": list(summary.warnings) or None}
        except ConvertError as error:
            facts |= {"fits_base": False, "problem": str(error)}
    return facts


def _directory(path: Path) -> Facts:
    """Return what a Hugging Face folder holds, as far as it can be read."""
    directory = snapshot_folder(path)
    facts: Facts = {"path": str(directory)}
    if (directory / ADAPTER_CONFIG_NAME).exists():
        facts |= _adapter_config(read_json_object(directory / ADAPTER_CONFIG_NAME, MAX_CONFIG_BYTES))
    elif (directory / CONFIG_NAME).exists():
        facts |= _model_config(directory)
    else:
        what = f"neither {CONFIG_NAME} nor {ADAPTER_CONFIG_NAME}: not a model and not an adapter"
        raise unknown_folder(directory, what)
    tensors: dict[str, SourceTensor] = {}
    for weights in sorted(directory.glob("*.safetensors")):
        try:
            with open_regular(weights) as file:
                tensors |= read_tensor_table(file, weights)
        except ConvertError:
            return facts  # the trial conversion says what is wrong with it
    return facts | _stored(tensors)


def _model_config(directory: Path) -> Facts:
    facts: Facts = {"kind": "checkpoint"}
    try:
        h = read_hyperparameters(directory)
    except ConvertError:
        return facts  # the trial conversion says what is wrong with it
    facts |= {"layers": h.n_layers, "width": h.n_embd, "heads": h.n_heads}
    return facts | {"kv_heads": h.n_kv_heads, "context": h.n_ctx, "vocabulary": h.n_vocab}


def _adapter_config(config: Mapping[str, object]) -> Facts:
    parameters = config.get("lora_parameters")
    if isinstance(parameters, dict):
        return {"kind": "MLX adapter", "rank": parameters.get("rank"), "scale": parameters.get("scale")}
    keys = (
        "peft_type",
        "r",
        "lora_alpha",
        "target_modules",
        "use_rslora",
        "use_dora",
        "alora_invocation_tokens",
        "base_model_name_or_path",
    )
    return {"kind": "PEFT adapter"} | {key: config[key] for key in keys if config.get(key)}


def _stored(tensors: Mapping[str, SourceTensor]) -> Facts:
    types = Counter(tensor.dtype for tensor in tensors.values())
    return {
        "parameters": sum(math.prod(tensor.shape) for tensor in tensors.values()),
        "tensors": dict(sorted(types.items())),
        "size_bytes": sum(tensor.size_bytes for tensor in tensors.values()),
    }
