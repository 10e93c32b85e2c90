"""What ``chat`` accepts, as JSON Schema, for the API's description."""

from __future__ import annotations

from typing import Any, Final

from runtime.adapters.blend import MAX_TERMS
from runtime.chat.body import IGNORED
from runtime.generation import MAX_SCALE

_PART: Final = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
}
_MESSAGE: Final = {
    "type": "object",
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant"]},
        "content": {"oneOf": [{"type": "string"}, {"type": "array", "items": _PART}]},
    },
    "required": ["role", "content"],
}
_TERM: Final = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "id": {"type": "string"},
        "scale": {"type": ["number", "null"], "minimum": -MAX_SCALE, "maximum": MAX_SCALE},
    },
    "additionalProperties": False,
}
_PENALTY: Final = {"type": ["number", "null"], "minimum": -2, "maximum": 2}
_STOP: Final = {"type": "string", "minLength": 1, "maxLength": 1000}
_FIELDS: Final[dict[str, Any]] = {
    "model": {"type": "string", "pattern": "^(@cf/google/)?gemma-7b-it-lora(:.+)?$"},
    "lora": {"oneOf": [{"type": ["string", "null"]}, {"type": "array", "items": _TERM, "maxItems": MAX_TERMS}]},
    "max_tokens": {"type": ["integer", "null"], "minimum": 0},
    "max_completion_tokens": {"type": ["integer", "null"], "minimum": 0},
    "temperature": {"type": ["number", "null"], "minimum": 0, "maximum": 5},
    "top_p": {"type": ["number", "null"], "minimum": 0, "maximum": 2},
    "top_k": {"type": ["integer", "null"], "minimum": 0, "maximum": 1_000_000},
    "seed": {"type": ["integer", "null"]},
    "repetition_penalty": {"type": ["number", "null"], "minimum": 0, "maximum": 2},
    "frequency_penalty": _PENALTY,
    "presence_penalty": _PENALTY,
    "stop": {"oneOf": [_STOP, {"type": "array", "items": _STOP, "maxItems": 16}, {"type": "null"}]},
    "stream": {"type": ["boolean", "null"]},
    "stream_options": {"type": ["object", "null"], "properties": {"include_usage": {"type": ["boolean", "null"]}}},
    "n": {"enum": [1, None]},
    **{key: {} for key in sorted(IGNORED)},
}


def _body(**prompt: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {**_FIELDS, **prompt},
        "required": ["model", *prompt],
        "additionalProperties": False,
    }


CHAT_BODY: Final = _body(messages={"type": "array", "items": _MESSAGE, "minItems": 1})
"""A chat completion."""
TEXT_BODY: Final = _body(prompt={"type": "string"})
"""A plain completion."""
