"""PEFT's `adapter_config.json`: which keys change what the tensors mean, and the scale of each pair.

A key that would make a plain LoRA wrong is refused by name. A switch of a later PEFT that this version does not know is
refused too.

Source: peft tuners/lora/config.py and peft/config.py of PEFT 0.21 (the keys), utils/other.py get_pattern_key.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from convert.errors import MalformedJson, TensorMismatch, UnsupportedAdapter
from convert.files import read_json_object
from convert.rules.adapter import MAX_INVOCATION_TOKENS

CONFIG_NAME: Final = "adapter_config.json"
MAX_CONFIG_BYTES: Final = 1 << 20
NO_REMEDY: Final = "llama.cpp's gemma cannot represent it"
_MAX_TOKEN_ID: Final = (1 << 31) - 1
# Configuration keys whose value, when set, changes what the tensors mean; with the reason to refuse.
_REFUSED_KEYS: Final = {
    "lora_bias": f"a bias beside the LoRA; {NO_REMEDY}",
    "target_parameters": "LoRA on bare parameters is not supported",
    "layer_replication": "replicated layers make another model than the base",
    "fan_in_fan_out": "transposed weights (fan_in_fan_out) do not exist in Gemma",
    "megatron_config": "Megatron's parallel layers are not supported",
    "use_qalora": "QALoRA pools its inputs; it is not a plain LoRA",
    "use_bdlora": "block-diagonal LoRA is not a plain LoRA",
    "arrow_config": "Arrow routes between adapters; it is not a plain LoRA",
    "kasa_config": "KaSA is not a plain LoRA",
    "velora_config": "VeLoRA is not a plain LoRA",
    "monteclora_config": "MonteCLoRA is not a plain LoRA",
}
_BOOLEANS: Final = frozenset(
    {"use_rslora", "use_dora", "lora_bias", "fan_in_fan_out", "use_qalora", "inference_mode", "ensure_weight_tying"}
)
# Keys that name the training, the file or the modules, and leave the meaning of the saved tensors alone.
_HARMLESS_KEYS: Final = frozenset(
    {
        *(
            "peft_type",
            "task_type",
            "peft_version",
            "auto_mapping",
            "base_model_name_or_path",
            "revision",
            "model_type",
        ),
        *("inference_mode", "r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern", "use_rslora"),
        *("use_dora", "target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern"),
        *("init_lora_weights", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "runtime_config"),
        *("megatron_core", "qalora_group_size", "trainable_token_indices", "ensure_weight_tying", "bias"),
        *("alora_invocation_tokens", "invocation_string", "merge_weights", "enable_lora"),  # the last two: PEFT 0.2
        *("model_type", "unsloth_version", "_custom_modules", "custom_modules"),
    }
)
_INITS_THAT_CHANGE_THE_BASE: Final = ("pissa", "olora", "loftq", "corda", "lora_ga")
_N_PATTERNS: Final = 4096


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """The part of adapter_config.json that decides what the tensors mean.

    `trained_token_ids` are the rows of the embedding that were trained alone; `saved_modules` the modules that were
    trained whole; `ties_embeddings` says that embedding and head were trained as one.
    """

    path: Path
    rank: int
    alpha: float
    uses_rslora: bool
    uses_dora: bool
    rank_pattern: Mapping[str, float]
    alpha_pattern: Mapping[str, float]
    base_name: str | None
    saved_modules: tuple[str, ...]
    trained_token_ids: tuple[int, ...]
    ties_embeddings: bool
    invocation_tokens: tuple[int, ...]
    warnings: tuple[str, ...]

    def alpha_of(self, module: str, rank: int) -> float:
        """Return the alpha that makes alpha / rank the scale PEFT uses for `module`.

        Raises:
            TensorMismatch: The module's rank is not the configured one.
        """
        wanted_rank = _pattern(self.rank_pattern, module, self.rank)
        if wanted_rank != rank:
            raise TensorMismatch(f"{self.path}: {module!r} has rank {rank}, but the configuration says {wanted_rank}")
        alpha = _pattern(self.alpha_pattern, module, self.alpha)
        return alpha * math.sqrt(rank) if self.uses_rslora else alpha


def read_peft_config(path: Path) -> PeftConfig:
    """Read and check an adapter_config.json of PEFT.

    Raises:
        MalformedJson: It cannot be read, lacks a number, or a switch is neither true nor false.
        UnsupportedAdapter: Another method than LoRA, or a feature that cannot be represented, named.
    """
    raw = read_json_object(path, MAX_CONFIG_BYTES)
    _refuse_other_methods(raw, path)
    rank = raw.get("r")
    if type(rank) is not int or not 1 <= rank <= 1 << 16:
        raise MalformedJson(f"{path}: r must be a number from 1 to 65536, but is {rank!r}")
    base_name = raw.get("base_model_name_or_path")
    return PeftConfig(
        path=path,
        rank=rank,
        alpha=_factor(raw.get("lora_alpha"), "lora_alpha", path),
        uses_rslora=raw.get("use_rslora") is True,
        uses_dora=raw.get("use_dora") is True,
        rank_pattern=_patterns(raw.get("rank_pattern"), "rank_pattern", path),
        alpha_pattern=_patterns(raw.get("alpha_pattern"), "alpha_pattern", path),
        base_name=base_name if isinstance(base_name, str) else None,
        saved_modules=_names(raw.get("modules_to_save")),
        trained_token_ids=_trained_token_ids(raw.get("trainable_token_indices"), path),
        ties_embeddings=raw.get("ensure_weight_tying") is True,
        invocation_tokens=_invocation_tokens(raw, path),
        warnings=tuple(_warnings(raw)),
    )


def _refuse_other_methods(raw: Mapping[str, object], path: Path) -> None:
    kind = raw.get("peft_type")
    if kind != "LORA":
        raise UnsupportedAdapter(f"{path}: peft_type {kind!r}; only LORA adapters are converted")
    if raw.get("model_type") not in (None, "gemma"):
        raise UnsupportedAdapter(f"{path}: made for model_type {raw['model_type']!r}, not gemma")
    for key in sorted(_BOOLEANS & raw.keys()):
        if raw[key] is not None and not isinstance(raw[key], bool):
            raise MalformedJson(f"{path}: {key} must be true or false, but is {raw[key]!r}")
    for key, reason in _REFUSED_KEYS.items():
        if raw.get(key):
            raise UnsupportedAdapter(f"{path}: {key}: {reason}")
    if raw.get("bias") not in (None, "none"):
        raise UnsupportedAdapter(f"{path}: bias {raw['bias']!r}: trained biases; {NO_REMEDY}")
    for key in sorted(raw.keys() - _HARMLESS_KEYS - _REFUSED_KEYS.keys()):
        value = raw[key]
        if (key.startswith("use_") and value) or (key.endswith("_config") and value) or value is True:
            raise UnsupportedAdapter(
                f"{path}: {key} is switched on, and this version does not know what it does to the weights; update "
                "gemlane, or take the key out if it does nothing to them"
            )


def _warnings(raw: Mapping[str, object]) -> Iterator[str]:
    init = raw.get("init_lora_weights")
    if (isinstance(init, str) and init.lower().startswith(_INITS_THAT_CHANGE_THE_BASE)) or raw.get("loftq_config"):
        yield (
            f"trained with init_lora_weights={init!r}, which changes the base's weights: right only on that "
            "changed base, or if it was saved with path_initial_model_for_weight_conversion"
        )
    unknown = sorted(key for key in raw.keys() - _HARMLESS_KEYS - _REFUSED_KEYS.keys() if raw[key])
    if unknown:
        yield f"adapter_config.json has keys that this version does not know, and ignores: {', '.join(unknown)[:200]}"


def _names(value: object) -> tuple[str, ...]:
    return tuple(str(name) for name in value) if isinstance(value, list) else ()


def _trained_token_ids(value: object, path: Path) -> tuple[int, ...]:
    """Return the ids of trained rows: a list, or an object with a list for the embedding."""
    if isinstance(value, dict):
        lists = {name.rpartition(".")[2]: ids for name, ids in value.items()}
        value = lists.get("embed_tokens") or lists.get("lm_head") or []
        if any(ids != value for ids in lists.values()):
            raise UnsupportedAdapter(f"{path}: trainable_token_indices: other tokens in the head than in the embedding")
    if not value:
        return ()
    if not isinstance(value, list) or not all(type(one) is int and 0 <= one <= _MAX_TOKEN_ID for one in value):
        raise MalformedJson(f"{path}: trainable_token_indices must be a list of token ids")
    if len(set(value)) != len(value):
        raise MalformedJson(f"{path}: trainable_token_indices names a token twice")
    return tuple(value)


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
        if type(token) is not int or not 0 <= token <= _MAX_TOKEN_ID:
            raise MalformedJson(f"{path}: alora_invocation_tokens must hold token ids, not {token!r}")
    return tuple(tokens)


def _factor(value: object, key: str, path: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1e9:
        raise MalformedJson(f"{path}: {key} must be a number above 0, but is {value!r}")
    return float(value)


def _pattern(patterns: Mapping[str, float], module: str, default: float) -> float:
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _patterns(value: object, key: str, path: Path) -> dict[str, float]:
    """Check a table of untrusted regular expressions: only those that cannot run for ever are accepted."""
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > _N_PATTERNS:
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
