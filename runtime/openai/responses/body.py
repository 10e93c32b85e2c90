"""The body of ``POST /v1/responses`` -> values. Pure.

Nothing is stored: what refers to a stored response or conversation is refused by name. Source: OpenAI's API reference,
"Create a model response".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from runtime.adapters.blend import BlendTerm, parse_lora
from runtime.chat import sampling
from runtime.chat.fields import Field, boolean, integer, read_fields, record, text
from runtime.chat.messages import MAX_MESSAGES, ROLES, parse_content, render_call
from runtime.chat.structured import parse_format
from runtime.errors import InvalidParameter, UnknownParameter, UnsupportedParameter
from runtime.generation import MAX_LOGPROBS, Sampling
from runtime.prompt.gemma import Message

FIELDS: Final[Mapping[str, Field]] = {
    "model": text(),
    "instructions": text(),
    "max_output_tokens": integer(-1),
    "stream": boolean(),
    "stream_options": record(),
    "text": record(),
    "top_logprobs": integer(0, MAX_LOGPROBS),
    **sampling.FIELDS,
}
IGNORED: Final = frozenset(
    [
        *("store", "metadata", "user", "service_tier", "safety_identifier", "prompt_cache_key", "truncation"),
        *("prompt_cache_retention", "parallel_tool_calls", "tools", "reasoning", "max_tool_calls", "verbosity"),
        *("context_management", "prompt_cache_options"),
    ]
)
"""Known keys that change nothing in the answer of this model."""
_STORED: Final = ("previous_response_id", "conversation", "prompt")
_NEUTRAL: Final[Mapping[str, tuple[Any, ...]]] = {"background": (False,), "tool_choice": ("none", "auto")}
_LOGPROBS: Final = "message.output_text.logprobs"
_MAX_TOKENS: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class ResponseInput:
    """What a response is asked for."""

    model: str
    lora: tuple[BlendTerm, ...]
    messages: tuple[Message, ...]
    max_tokens: int | None
    sampling: Sampling
    n_logprobs: int | None
    is_stream: bool
    ignored: tuple[str, ...]
    echoed: Mapping[str, Any]
    """Values of the body that every response object repeats."""


def parse_response(body: Mapping[str, Any]) -> ResponseInput:
    """Everything that a body asks for.

    Raises:
        InvalidParameter: a value of the wrong type or out of its range, or a parameter that is not served.
    """
    _refuse(body)
    values = read_fields(FIELDS, body)
    form = values.get("text", {}).get("format")
    grammar = parse_format(form, "text.format") if form is not None else None
    messages = _messages(body.get("input"))
    if values.get("instructions"):
        messages = (Message("system", values["instructions"]), *messages)
    limit = values.get("max_output_tokens")
    included = body.get("include") or []
    has_logprobs = _LOGPROBS in included if isinstance(included, list) else False
    return ResponseInput(
        model=values.get("model", ""),
        lora=parse_lora(body.get("lora")),
        messages=messages,
        max_tokens=None if limit is None else min(limit, _MAX_TOKENS) if limit >= 0 else _MAX_TOKENS,
        sampling=sampling.parse_sampling(body, grammar),
        n_logprobs=values.get("top_logprobs", 0) if has_logprobs or values.get("top_logprobs") else None,
        is_stream=values.get("stream", False),
        ignored=tuple(sorted(key for key in IGNORED if body.get(key) is not None)),
        echoed={
            "instructions": values.get("instructions"),
            "max_output_tokens": limit,
            "metadata": body.get("metadata") or {},
            "temperature": values.get("temperature"),
            "top_p": values.get("top_p"),
            "top_logprobs": values.get("top_logprobs", 0),
            "text": {"format": form or {"type": "text"}},
        },
    )


def _refuse(body: Mapping[str, Any]) -> None:
    known = {*FIELDS, *IGNORED, "input", "include", "lora"}
    for key, value in body.items():
        if value is None or key in known:
            continue
        if key in _STORED:
            raise UnsupportedParameter(f"{key} is not served: this server stores nothing; send the whole input", key)
        if key in _NEUTRAL:
            if value not in _NEUTRAL[key]:
                raise UnsupportedParameter(f"{key} is not served by this server; leave it out", key)
        else:
            raise UnknownParameter(f"unknown parameter {key[:100]!r}", key[:100])


def _messages(value: Any) -> tuple[Message, ...]:
    if isinstance(value, str):
        return (Message("user", value),)
    if not isinstance(value, list) or not value:
        raise InvalidParameter("input must be a string or a list of at least one item", "input")
    if len(value) > MAX_MESSAGES:
        raise InvalidParameter(f"input may hold {MAX_MESSAGES} items at most", "input")
    items = (_item(item, f"input[{index}]") for index, item in enumerate(value))
    return tuple(message for message in items if message is not None)


def _item(item: Any, place: str) -> Message | None:
    """One item of the input as a message; reasoning of another model is left out."""
    kind = item.get("type", "message") if isinstance(item, dict) else None
    match kind:
        case "message":
            role = item.get("role")
            if not isinstance(role, str) or role not in ROLES:
                raise InvalidParameter(f"{place}.role must be one of {', '.join(ROLES)}", f"{place}.role")
            return Message(ROLES[role], parse_content(item.get("content"), f"{place}.content"))
        case "function_call":
            return Message("assistant", render_call(item.get("name"), item.get("arguments")))
        case "function_call_output":
            return Message("user", parse_content(item.get("output"), f"{place}.output"))
        case "reasoning":
            return None
        case "item_reference":
            raise UnsupportedParameter(f"{place}: this server stores nothing; send the item itself", place)
        case _:
            raise InvalidParameter(f"{place} must be a message or a call of a function with its output", place)
