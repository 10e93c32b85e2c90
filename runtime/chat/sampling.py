"""The parameters of sampling: OpenAI's names, and those of llama-server, vLLM and Ollama. One table. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from runtime.chat.fields import Field, boolean, integer, number, read_fields, texts
from runtime.errors import InvalidParameter
from runtime.generation import Dry, Grammar, Sampling, TokenBias

_MAX_BIASES: Final = 1024
_SEED_MASK: Final = 2**63 - 1  # seeds may be any 64-bit integer; the engine's are not negative


def _logit_bias() -> Field:
    def read(name: str, value: Any) -> tuple[TokenBias, ...]:
        if not isinstance(value, dict) or len(value) > _MAX_BIASES:
            raise InvalidParameter(f"{name} must be an object of at most {_MAX_BIASES} token ids and biases", name)
        return tuple(_bias(name, token, bias) for token, bias in value.items())

    bias = {"type": "number", "minimum": -100, "maximum": 100}
    return Field(
        read, {"type": ["object", "null"], "patternProperties": {r"^\d{1,9}$": bias}, "additionalProperties": False}
    )


def _bias(name: str, token: str, bias: Any) -> TokenBias:
    is_number = isinstance(bias, int | float) and not isinstance(bias, bool) and -100 <= bias <= 100
    if not (token.isascii() and token.isdecimal() and len(token) < 10 and is_number):
        raise InvalidParameter(f"{name} must map token ids to numbers between -100 and 100", name)
    return TokenBias(int(token), float(bias))


FIELDS: Final[Mapping[str, Field]] = {
    "temperature": number(0, 5),
    "top_p": number(0, 2),
    "top_k": integer(-1, 1_000_000),
    "min_p": number(0, 1),
    "typical_p": number(0, 1),
    "seed": integer(),
    "frequency_penalty": number(-2, 2),
    "presence_penalty": number(-2, 2),
    "repetition_penalty": number(0, 2),
    "repeat_penalty": number(0, 2),
    "repeat_last_n": integer(-1, 1 << 20),
    "xtc_probability": number(0, 1),
    "xtc_threshold": number(0, 1),
    "dry_multiplier": number(0, 100),
    "dry_base": number(1, 100),
    "dry_allowed_length": integer(0, 1 << 20),
    "dry_penalty_last_n": integer(-1, 1 << 20),
    "dry_sequence_breakers": texts(32, 100),
    "logit_bias": _logit_bias(),
    "ignore_eos": boolean(),
}
"""The keys; ``repeat_penalty`` and ``repeat_last_n`` are llama.cpp's, ``repetition_penalty`` is vLLM's."""
_SAME: Final = (
    *("temperature", "top_p", "min_p", "typical_p", "frequency_penalty", "presence_penalty", "repetition_penalty"),
    *("xtc_probability", "xtc_threshold"),
)
"""Keys whose value is that of ``Sampling`` under the same name."""
_RENAMED: Final = {"repeat_last_n": "repetition_window", "logit_bias": "biases", "ignore_eos": "ignores_end"}
_DRY: Final = {
    "dry_multiplier": "multiplier",
    "dry_base": "base",
    "dry_allowed_length": "allowed_length",
    "dry_penalty_last_n": "last_n",
    "dry_sequence_breakers": "breakers",
}


def parse_sampling(body: Mapping[str, Any], grammar: Grammar | None) -> Sampling:
    """The sampling that a body asks for.

    Raises:
        InvalidParameter: a value of the wrong type or out of its range.
    """
    values = read_fields(FIELDS, body)
    chosen: dict[str, Any] = {name: values[name] for name in _SAME if name in values}
    chosen |= {ours: values[name] for name, ours in _RENAMED.items() if name in values}
    if "repeat_penalty" in values:
        chosen.setdefault("repetition_penalty", values["repeat_penalty"])
    if "seed" in values:
        chosen["seed"] = values["seed"] & _SEED_MASK
    dry = Dry(**{ours: values[name] for name, ours in _DRY.items() if name in values})
    return Sampling(**chosen, top_k=max(0, values.get("top_k", 0)), dry=dry, grammar=grammar)
