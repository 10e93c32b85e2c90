"""Reads a checkpoint's `config.json` into hyper-parameters, and refuses models other than Gemma.

Source: transformers configuration_gemma.py of versions 4 and 5.
"""

from pathlib import Path
from typing import Final

from convert.errors import MalformedJson, UnsupportedModel
from convert.files import read_json_object
from convert.folders import CONFIG_NAME, model_folder
from convert.rules.gemma import DEFAULT_ROPE_THETA, Hyperparameters

MAX_CONFIG_BYTES: Final = 1 << 20
_CLASS: Final = "GemmaForCausalLM"
# "gelu" is what early Gemma checkpoints say; they mean the tanh form all the same.
_ACTIVATIONS: Final = frozenset({"gelu", "gelu_pytorch_tanh", "gelu_new"})
_COUNT_LIMIT: Final = 1 << 24


def read_hyperparameters(directory: Path) -> Hyperparameters:
    """Read and check `config.json` of a checkpoint.

    Raises:
        MissingFile: There is none.
        MalformedJson: It is not JSON, or lacks a number that is needed.
        UnsupportedModel: Another architecture, activation or rope scaling than arch `gemma` has.
    """
    path = model_folder(directory) / CONFIG_NAME
    config = read_json_object(path, MAX_CONFIG_BYTES)
    _check_architecture(config, path)
    activation = config.get("hidden_activation") or config.get("hidden_act") or "gelu_pytorch_tanh"
    if activation not in _ACTIVATIONS:
        raise UnsupportedModel(f"{path}: activation {activation!r}; llama.cpp's gemma has tanh GELU only")
    n_heads = _count(config, "num_attention_heads", path)
    theta, factor = _rope(config, path)
    return Hyperparameters(
        n_layers=_count(config, "num_hidden_layers", path, limit=10_000),
        n_embd=_count(config, "hidden_size", path),
        n_ff=_count(config, "intermediate_size", path),
        n_heads=n_heads,
        n_kv_heads=_count(config, "num_key_value_heads", path, default=n_heads),
        head_dim=_count(config, "head_dim", path, default=256),
        n_vocab=_count(config, "vocab_size", path),
        n_ctx=_count(config, "max_position_embeddings", path, default=8192),
        rms_epsilon=_real(config.get("rms_norm_eps", 1e-6), "rms_norm_eps", path),
        rope_theta=theta,
        rope_factor=factor,
        has_attention_bias=config.get("attention_bias") is True,
        has_tied_head=config.get("tie_word_embeddings") is not False,
        quantized_by=_quantized_by(config),
    )


def _quantized_by(config: dict[str, object]) -> str | None:
    """Return the method that the configuration says the weights were quantised by; None if it says nothing."""
    quantization = config.get("quantization_config") or config.get("quantization")
    if not quantization:
        return None
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    return str(method or ("MLX" if "quantization" in config else "unknown method"))


def _check_architecture(config: dict[str, object], path: Path) -> None:
    classes = config.get("architectures")
    if classes is None and config.get("model_type") == "gemma":
        return
    if classes != [_CLASS]:
        named = ", ".join(map(str, classes)) if isinstance(classes, list) else config.get("model_type")
        if classes == ["GemmaForSequenceClassification"]:
            raise UnsupportedModel(f"{path}: a classifier ({named}); gemlane serves models that generate text")
        raise UnsupportedModel(
            f"{path}: architecture {named or 'unknown'}; only {_CLASS} is converted; llama.cpp converts others"
        )


def _count(
    config: dict[str, object], key: str, path: Path, *, default: int | None = None, limit: int = _COUNT_LIMIT
) -> int:
    value = config.get(key, default)
    if value is None and default is not None:
        value = default
    if type(value) is not int or not 1 <= value <= limit:
        raise MalformedJson(f"{path}: {key} must be a number from 1 to {limit}, but is {value!r}")
    return value


def _real(value: object, key: str, path: Path) -> float:
    """Check a number that will be stored as float32."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1e-30 < value < 1e30:
        raise MalformedJson(f"{path}: {key} must be a number above 0, but is {value!r}")
    return float(value)


def _rope(config: dict[str, object], path: Path) -> tuple[float, float | None]:
    """Return theta and, if positions are scaled linearly, the factor; transformers 5 nests both."""
    nested = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or nested
    if not isinstance(nested, dict) or not isinstance(scaling, dict):
        raise MalformedJson(f"{path}: rope_parameters and rope_scaling must be objects")
    theta = nested.get("rope_theta", config.get("rope_theta", DEFAULT_ROPE_THETA))
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ("default", "linear"):
        raise UnsupportedModel(f"{path}: rope scaling {kind!r}; only linear scaling can be written for gemma")
    factor = _real(scaling.get("factor"), "the rope scaling factor", path) if kind == "linear" else None
    return _real(theta, "rope_theta", path), factor
