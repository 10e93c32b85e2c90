"""The MLX dialect: `adapters.safetensors` and `adapter_config.json` as mlx-lm's training writes them.

MLX keeps both factors transposed, and its scale is the whole factor: not divided by the rank.

Source: mlx-lm mlx_lm/tuner/lora.py (LoRALinear, DoRALinear), mlx_lm/tuner/utils.py load_adapters.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from convert.adapters.adapter import LoraAdapter, check_magnitudes
from convert.adapters.pair import LoraPair
from convert.adapters.peft_config import CONFIG_NAME, MAX_CONFIG_BYTES
from convert.errors import MalformedJson, TensorMismatch, UnsupportedAdapter
from convert.files import read_json_object
from convert.rules.gemma import PROJECTIONS
from convert.tensors.safetensors import SafetensorsFile
from convert.tensors.sources import StoredRows, TransposedRows

WEIGHTS_NAME: Final = "adapters.safetensors"
_KEY: Final = re.compile(
    r"(?:(?:model|language_model)\.)*layers\.(?P<layer>0|[1-9][0-9]{0,3})"
    r"\.(?P<module>self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj)\.(?P<part>lora_a|lora_b|m)"
)


def is_mlx(config: Mapping[str, object]) -> bool:
    """Say whether an adapter_config.json is mlx-lm's."""
    return "peft_type" not in config and ("lora_parameters" in config or "fine_tune_type" in config)


def read_mlx(path: Path, file: SafetensorsFile, *, is_legacy_alpha: bool = False) -> LoraAdapter:
    """Read an MLX adapter; the weights stay in `file`, which must stay open.

    Args:
        path: What the user named; errors and the result's name use it.
        file: Its weights, beside its `adapter_config.json`.
        is_legacy_alpha: The adapter is from mlx-lm of January to June 2024, which multiplied the scale by alpha / rank.

    Raises:
        MalformedJson: The configuration cannot be read, or has no scale.
        UnsupportedAdapter: A full fine-tune, or a tensor that does not belong to a LoRA on Gemma.
        TensorMismatch: A half pair, or ranks that differ.
    """
    config_path = file.path.parent / CONFIG_NAME
    config = read_json_object(config_path, MAX_CONFIG_BYTES)
    kind = config.get("fine_tune_type", "dora" if config.get("use_dora") is True else "lora")
    if kind not in ("lora", "dora"):
        raise UnsupportedAdapter(f"{config_path}: fine_tune_type {kind!r}; fuse it into the model with mlx_lm.fuse")
    parameters = config.get("lora_parameters")
    if not isinstance(parameters, dict):
        raise MalformedJson(f"{config_path}: lora_parameters must be an object")
    scale = _number(parameters.get("scale"), "scale", config_path)
    alpha = _number(parameters["alpha"], "alpha", config_path) if parameters.get("alpha") is not None else None
    if is_legacy_alpha and alpha is None:
        raise MalformedJson(f"{config_path}: --mlx-legacy-alpha, but lora_parameters has no alpha")
    pairs, magnitudes = {}, {}
    for name, parts in _parts(file).items():
        pair_path = f"{file.path}: {name!r}"
        if "lora_a" not in parts or "lora_b" not in parts:
            raise TensorMismatch(f"{pair_path} has only one of lora_a and lora_b")
        a, b = (StoredRows(file, parts[part]) for part in ("lora_a", "lora_b"))
        if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[1] != b.shape[0] or a.shape[1] < 1:
            raise TensorMismatch(f"{pair_path} has lora_a {list(a.shape)} and lora_b {list(b.shape)}")
        factor = alpha if is_legacy_alpha and alpha is not None else float(a.shape[1])
        pairs[name] = LoraPair(TransposedRows(a), TransposedRows(b), scale * factor)
        if "m" in parts:
            magnitudes[name] = StoredRows(file, parts["m"])
    check_magnitudes(config_path, pairs, magnitudes, is_dora=kind == "dora")
    base_name = config.get("model")
    return LoraAdapter(
        path=path,
        pairs=pairs,
        base_name=base_name if isinstance(base_name, str) else None,
        magnitudes=magnitudes,
        warnings=_warnings(alpha, is_legacy_alpha=is_legacy_alpha),
    )


def _parts(file: SafetensorsFile) -> dict[str, dict[str, str]]:
    """Return GGUF weight name -> part -> key."""
    parts: dict[str, dict[str, str]] = {}
    for key in file.tensors:
        match = _KEY.fullmatch(key)
        if match is None:
            raise UnsupportedAdapter(f"{file.path}: {key!r}: not a LoRA tensor of one of Gemma's seven projections")
        name = f"blk.{match['layer']}.{PROJECTIONS[match['module']]}.weight"
        if parts.setdefault(name, {}).setdefault(match["part"], key) != key:
            raise TensorMismatch(f"{file.path}: {match['part']} of {name!r} is there twice")
    return parts


def _number(value: object, key: str, path: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1e9:
        raise MalformedJson(f"{path}: lora_parameters.{key} must be a number above 0, but is {value!r}")
    return float(value)


def _warnings(alpha: float | None, *, is_legacy_alpha: bool) -> tuple[str, ...]:
    if alpha is None or is_legacy_alpha:
        return ()
    return (
        f"lora_parameters has an alpha of {alpha:g}, which mlx-lm ignores; if it was trained with mlx-lm of January to "
        "June 2024, add --mlx-legacy-alpha",
    )
