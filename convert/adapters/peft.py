"""The PEFT dialect: `adapter_config.json` and `adapter_model.safetensors`, of PEFT, TRL, Unsloth and others.

Everything that would be silently wrong as a GGUF LoRA is refused by name.

Source: peft tuners/lora/config.py, tuners/lora/layer.py, utils/other.py get_pattern_key,
utils/save_and_load.py.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from convert.adapters.adapter import LoraAdapter, LoraPair, check_magnitudes
from convert.errors import MalformedJson, TensorMismatch, UnsupportedAdapter
from convert.files import read_json_object
from convert.rules.adapter import MAX_INVOCATION_TOKENS
from convert.rules.gemma import PROJECTIONS, gguf_name
from convert.tensors.safetensors import SafetensorsFile
from convert.tensors.sources import StoredRows

MAX_CONFIG_BYTES: Final = 1 << 20
CONFIG_NAME: Final = "adapter_config.json"
WEIGHTS_NAME: Final = "adapter_model.safetensors"

_NO_REMEDY: Final = "llama.cpp's gemma cannot represent it"
# Configuration keys whose value, when set, changes what the tensors mean; with the reason to refuse.
_REFUSED_KEYS: Final = {
    "lora_bias": f"a bias beside the LoRA; {_NO_REMEDY}",
    "trainable_token_indices": f"trained token embeddings; {_NO_REMEDY}",
    "target_parameters": "LoRA on bare parameters is not supported",
    "layer_replication": "replicated layers make another model than the base",
    "fan_in_fan_out": "transposed weights (fan_in_fan_out) do not exist in Gemma",
    "megatron_config": "Megatron's parallel layers are not supported",
    "use_qalora": "QALoRA pools its inputs; it is no plain LoRA",
    "use_bdlora": "block-diagonal LoRA is no plain LoRA",
    "arrow_config": "Arrow routes between adapters; it is no plain LoRA",
    "kasa_config": "KaSA is no plain LoRA",
    "velora_config": "VeLoRA is no plain LoRA",
    "monteclora_config": "MonteCLoRA is no plain LoRA",
}
_INITS_THAT_CHANGE_THE_BASE: Final = ("pissa", "olora", "loftq", "corda", "lora_ga")
_MAGNITUDE: Final = "lora_magnitude_vector"
_WEIGHT: Final = re.compile(
    r"layers\.(?P<layer>0|[1-9][0-9]{0,3})\.(?P<module>self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj)"
    r"\.(?:(?P<half>lora_A|lora_B)(?:\.[^.]+)?\.weight|lora_magnitude_vector(?:\.[^.]+)?(?:\.weight)?)"
)
_NORM: Final = re.compile(
    r"(?P<norm>(?:layers\.[0-9]+\.(?:input|post_attention)_layernorm|norm))(?:\.modules_to_save(?:\.[^.]+)?)?\.weight"
)
_PREFIX: Final = re.compile(r"(?:(?:base_model|model|language_model)\.)*")


@dataclass(frozen=True, slots=True)
class _Config:
    """The part of adapter_config.json that decides the scale of each pair."""

    path: Path
    rank: int
    alpha: float
    uses_rslora: bool
    rank_pattern: Mapping[str, float]
    alpha_pattern: Mapping[str, float]

    def alpha_of(self, module: str, rank: int) -> float:
        """Return the alpha that makes alpha / rank the scale PEFT uses for `module`."""
        wanted_rank = self._pattern(self.rank_pattern, module, self.rank)
        if wanted_rank != rank:
            raise TensorMismatch(f"{self.path}: {module!r} has rank {rank}, but the configuration says {wanted_rank}")
        alpha = self._pattern(self.alpha_pattern, module, self.alpha)
        return alpha * math.sqrt(rank) if self.uses_rslora else alpha

    def _pattern(self, patterns: Mapping[str, float], module: str, default: float) -> float:
        for pattern, value in patterns.items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        return default


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
    config_path = file.path.parent / CONFIG_NAME
    raw = read_json_object(config_path, MAX_CONFIG_BYTES)
    config = _parse_config(raw, config_path)
    parts: dict[str, dict[str, str]] = {}
    modules: dict[str, str] = {}
    norms: dict[str, StoredRows] = {}
    for key in file.tensors:
        if key.endswith(".base_layer.weight"):
            continue  # PEFT saves the untouched base matrix beside a LoRA on the head
        bare = key[_PREFIX.match(key).end() :]  # type: ignore[union-attr] # it matches the empty string
        match = _WEIGHT.fullmatch(bare)
        if match is not None:
            name = f"blk.{match['layer']}.{PROJECTIONS[match['module']]}.weight"
            part = match["half"] or _MAGNITUDE
            if parts.setdefault(name, {}).setdefault(part, key) != key:
                raise TensorMismatch(f"{file.path}: {part} of {name!r} is there twice")
            modules[name] = f"model.layers.{match['layer']}.{match['module']}"
        elif (norm := _NORM.fullmatch(bare)) is not None:
            name = str(gguf_name(norm["norm"] + ".weight"))
            if norms.setdefault(name, StoredRows(file, key)).key != key:
                raise TensorMismatch(f"{file.path}: {name!r} is there twice")
        else:
            raise UnsupportedAdapter(f"{file.path}: {key!r}: {_why_not(bare)}")
    pairs = {name: _pair(file, name, keys, modules[name], config) for name, keys in parts.items()}
    magnitudes = {name: StoredRows(file, keys[_MAGNITUDE]) for name, keys in parts.items() if _MAGNITUDE in keys}
    check_magnitudes(config_path, pairs, magnitudes, is_dora=raw.get("use_dora") is True)
    if raw.get("modules_to_save") and not norms:
        raise TensorMismatch(f"{config_path}: modules_to_save {raw['modules_to_save']!r}, but no such tensor is saved")
    base_name = raw.get("base_model_name_or_path")
    return LoraAdapter(
        path=path,
        pairs=pairs,
        base_name=base_name if isinstance(base_name, str) else None,
        magnitudes=magnitudes,
        norms=norms,
        warnings=_warnings(raw),
        invocation_tokens=_invocation_tokens(raw, config_path),
    )


def _pair(file: SafetensorsFile, name: str, parts: Mapping[str, str], module: str, config: _Config) -> LoraPair:
    if "lora_A" not in parts or "lora_B" not in parts:
        raise TensorMismatch(f"{file.path}: {name!r} has only one of lora_A and lora_B")
    a, b = StoredRows(file, parts["lora_A"]), StoredRows(file, parts["lora_B"])
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
        raise TensorMismatch(f"{file.path}: {name!r} has lora_A {list(a.shape)} and lora_B {list(b.shape)}")
    return LoraPair(a, b, config.alpha_of(module, a.shape[0]))


def _why_not(bare: str) -> str:
    """Name the reason why a tensor cannot be part of a GGUF LoRA on Gemma."""
    for mark, reason in (
        ("lora_embedding_", f"LoRA on the token embedding; {_NO_REMEDY}"),
        ("embed_tokens", f"trained token embeddings; {_NO_REMEDY}"),
        ("token_adapter", f"trained token embeddings; {_NO_REMEDY}"),
        ("trainable_tokens", f"trained token embeddings; {_NO_REMEDY}"),
        ("lm_head", f"LoRA on the output head, which Gemma shares with the embedding; {_NO_REMEDY}"),
        (".bias", f"trained biases; {_NO_REMEDY}"),
        ("lora_a", "an MLX adapter in PEFT's clothes; its configuration must be MLX's too"),
    ):
        if mark in bare:
            return reason
    return "not a LoRA tensor of a weight of Gemma"


def _parse_config(raw: Mapping[str, object], path: Path) -> _Config:
    kind = raw.get("peft_type")
    if kind != "LORA":
        raise UnsupportedAdapter(f"{path}: peft_type {kind!r}; only LORA adapters are converted")
    if raw.get("model_type", "gemma") != "gemma":
        raise UnsupportedAdapter(f"{path}: made for model_type {raw['model_type']!r}, not gemma")
    for key, reason in _REFUSED_KEYS.items():
        if raw.get(key):
            raise UnsupportedAdapter(f"{path}: {key}: {reason}")
    if raw.get("bias", "none") != "none":
        raise UnsupportedAdapter(f"{path}: bias {raw['bias']!r}: trained biases; {_NO_REMEDY}")
    rank = raw.get("r")
    if type(rank) is not int or not 1 <= rank <= 1 << 16:
        raise MalformedJson(f"{path}: r must be a number from 1 to 65536, but is {rank!r}")
    return _Config(
        path=path,
        rank=rank,
        alpha=_factor(raw.get("lora_alpha"), "lora_alpha", path),
        uses_rslora=raw.get("use_rslora") is True,
        rank_pattern=_patterns(raw.get("rank_pattern"), "rank_pattern", path),
        alpha_pattern=_patterns(raw.get("alpha_pattern"), "alpha_pattern", path),
    )


def _invocation_tokens(raw: Mapping[str, object], path: Path) -> tuple[int, ...]:
    """Return the invocation tokens of an activated LoRA (aLoRA); PEFT takes an empty list for a plain LoRA."""
    tokens = raw.get("alora_invocation_tokens")
    if not tokens and raw.get("invocation_string"):
        # Before PEFT had aLoRA; which tokens it meant depends on the trainer's tokenizer and on an offset of one.
        raise UnsupportedAdapter(
            f"{path}: invocation_string: an activated LoRA (aLoRA) of the old form; "
            "add alora_invocation_tokens, the list of its tokens"
        )
    if tokens is None:
        return ()
    if not isinstance(tokens, list) or len(tokens) > MAX_INVOCATION_TOKENS:
        raise MalformedJson(f"{path}: alora_invocation_tokens must be a list of at most {MAX_INVOCATION_TOKENS} tokens")
    for token in tokens:
        if type(token) is not int or not 0 <= token < 1 << 31:
            raise MalformedJson(f"{path}: alora_invocation_tokens must hold token ids, not {token!r}")
    return tuple(tokens)


def _factor(value: object, key: str, path: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1e9:
        raise MalformedJson(f"{path}: {key} must be a number above 0, but is {value!r}")
    return float(value)


def _patterns(value: object, key: str, path: Path) -> dict[str, float]:
    """Check a table of regular expressions that a stranger wrote: only ones that cannot run away."""
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > 4096:
        raise MalformedJson(f"{path}: {key} must be an object")
    for pattern in value:
        n_loops = len(re.findall(r"[*+{]", pattern))
        is_simple = len(pattern) <= 200 and n_loops <= 2 and "(?" not in pattern and not re.search(r"\)[*+{]", pattern)
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError):
            is_simple = False
        if not is_simple:
            raise UnsupportedAdapter(f"{path}: {key}: the pattern {pattern[:80]!r} is too intricate; name the modules")
    return {pattern: _factor(number, f"{key}[{pattern[:80]!r}]", path) for pattern, number in value.items()}


def _warnings(raw: Mapping[str, object]) -> tuple[str, ...]:
    init = raw.get("init_lora_weights")
    if (isinstance(init, str) and init.lower().startswith(_INITS_THAT_CHANGE_THE_BASE)) or raw.get("loftq_config"):
        return (
            f"trained with init_lora_weights={init!r}, which changes the base's weights: right only on that "
            "changed base, or if it was saved with path_initial_model_for_weight_conversion",
        )
    return ()
