"""What ``body`` accepts, as JSON Schema, for the API's description."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from runtime.adapters.blend import MAX_TERMS
from runtime.chat.body import CHAT_FIELDS, IGNORED, TEXT_FIELDS
from runtime.chat.fields import Field
from runtime.chat.messages import MAX_MESSAGES, ROLES
from runtime.chat.prompts import MAX_PROMPTS
from runtime.generation import MAX_SCALE

_PART: Final = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
}
_MESSAGE: Final = {
    "type": "object",
    "properties": {
        "role": {"enum": list(ROLES)},
        "content": {"anyOf": [{"type": "string"}, {"type": "array", "items": _PART}]},
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
LORA: Final = {"oneOf": [{"type": ["string", "null"]}, {"type": "array", "items": _TERM, "maxItems": MAX_TERMS}]}
_TOKENS: Final = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 255}, "minItems": 1}
_PROMPT: Final = {
    "anyOf": [
        {"type": "string"},
        _TOKENS,
        {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MAX_PROMPTS},
    ]
}
MODEL: Final = {"type": "string", "pattern": "^(@cf/google/)?gemma-7b-it-lora(:.+)?$"}
_FORMAT: Final = {
    "anyOf": [
        {"type": "object", "properties": {"type": {"enum": ["text", "json_object"]}}, "required": ["type"]},
        {
            "type": "object",
            "properties": {
                "type": {"const": "json_schema"},
                "json_schema": {
                    "type": "object",
                    "properties": {"name": {"type": "string"}, "schema": {"type": "object"}},
                    "required": ["name", "schema"],
                },
            },
            "required": ["type", "json_schema"],
        },
    ]
}


def _body(fields: Mapping[str, Field], prompt: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    properties = {name: field.schema for name, field in fields.items()}
    return {
        "type": "object",
        "properties": {
            **properties,
            **{key: {} for key in sorted(IGNORED)},
            "model": MODEL,
            "lora": LORA,
            **more,
            **prompt,
        },
        "required": ["model", *prompt],
        "additionalProperties": False,
    }


CHAT_BODY: Final = _body(
    CHAT_FIELDS,
    {"messages": {"type": "array", "items": _MESSAGE, "minItems": 1, "maxItems": MAX_MESSAGES}},
    response_format=_FORMAT,
)
"""A chat completion."""
TEXT_BODY: Final = _body(TEXT_FIELDS, {"prompt": _PROMPT}, response_format=_FORMAT, grammar={"type": "string"})
"""A plain completion."""
