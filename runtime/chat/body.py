"""The bodies of chat completions and completions: OpenAI's names -> values. Pure.

Two dialects read these bodies alike; what they answer is their own. A parameter that would change the answer and that
we do not have is refused by name; ``null`` is as good as absent. Source: OpenAI's API reference, "Create chat
completion" and "Create completion"; ``top_k``, ``repetition_penalty`` and ``lora`` are additions, as in vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from runtime.adapters.blend import BlendTerm, parse_lora
from runtime.errors import InvalidRequest
from runtime.generation import Sampling
from runtime.prompt.gemma import Message

_ROLES: Final = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_MAX_STOPS: Final = 16
_MAX_STOP_LENGTH: Final = 1000
_MAX_TOKENS: Final = 2**31 - 1
_SEED_MASK: Final = 2**63 - 1  # seeds may be any 64-bit integer; the engine's are not negative

_KNOWN: Final = frozenset(
    [
        "model",
        "messages",
        "prompt",
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "top_p",
        "top_k",
        "seed",
        "frequency_penalty",
        "presence_penalty",
        "repetition_penalty",
        "stop",
        "stream",
        "stream_options",
        "lora",
    ]
)
IGNORED: Final = frozenset(
    [
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "reasoning_effort",
        "verbosity",
        "parallel_tool_calls",
        "options",
    ]
)
"""Known keys that change nothing in the answer of this model."""
_REFUSED: Final[Mapping[str, tuple[Any, ...]]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (False, 0),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
}
"""Keys that we do not serve, and the values of each that ask for nothing."""


@dataclass(frozen=True, slots=True)
class CompletionInput:
    """What a completion asks for, prompt or messages aside. ``max_tokens`` None is the dialect's default."""

    model: str
    lora: tuple[BlendTerm, ...]
    """The adapters it names; none for the base model."""
    max_tokens: int | None
    sampling: Sampling
    stop: tuple[str, ...]
    is_stream: bool
    includes_usage: bool
    """Whether a stream is to end with its token counts."""


def parse_completion(body: Mapping[str, Any], *, is_strict: bool = True) -> CompletionInput:
    """Everything but the prompt. ``is_strict`` refuses keys that nobody has heard of, as OpenAI does.

    Raises:
        InvalidRequest: a value of the wrong type or out of its range, or a parameter that is not served.
    """
    fields = {key: value for key, value in body.items() if value is not None}
    _refuse_unserved(fields, is_strict=is_strict)
    limits = [_integer(fields, name, 0, None) for name in ("max_completion_tokens", "max_tokens")]
    max_tokens = next((limit for limit in limits if limit is not None), None)
    stream_options = _typed(fields, "stream_options", dict, "an object") or {}
    return CompletionInput(
        model=_typed(fields, "model", str, "a string") or "",
        lora=parse_lora(fields.get("lora")),
        max_tokens=None if max_tokens is None else min(max_tokens, _MAX_TOKENS),
        sampling=_sampling(fields),
        stop=_stops(fields.get("stop")),
        is_stream=_typed(fields, "stream", bool, "a boolean") or False,
        includes_usage=_typed(stream_options, "include_usage", bool, "a boolean") or False,
    )


def parse_messages(body: Mapping[str, Any]) -> tuple[Message, ...]:
    """The conversation; content given in parts is joined, and an assistant's may be null.

    Raises:
        InvalidRequest: no list of messages, an unknown role, or content that is not text.
    """
    items = body.get("messages")
    if not isinstance(items, list) or not items:
        raise InvalidRequest("messages must be a list of at least one message")
    return tuple(_message(item, f"messages[{index}]") for index, item in enumerate(items))


def parse_prompt(body: Mapping[str, Any]) -> str:
    """The prompt of a plain completion.

    Raises:
        InvalidRequest: not one text; token ids and several prompts are not served.
    """
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        (prompt,) = prompt
    if not isinstance(prompt, str):
        raise InvalidRequest("prompt must be one string; token ids and several prompts are not served")
    return prompt


def _refuse_unserved(fields: Mapping[str, Any], *, is_strict: bool) -> None:
    for key, value in fields.items():
        if key in _REFUSED:
            if not any(value == harmless and type(value) is type(harmless) for harmless in _REFUSED[key]):
                raise InvalidRequest(f"{key} is not served by this server; leave it out")
        elif is_strict and key not in _KNOWN | IGNORED:
            raise InvalidRequest(f"unknown parameter {key[:100]!r}")


def _message(item: Any, place: str) -> Message:
    if not isinstance(item, dict):
        raise InvalidRequest(f"{place} must be an object")
    role = item.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise InvalidRequest(f"{place}.role must be one of {', '.join(_ROLES)}, not {str(role)[:100]!r}")
    return Message(_ROLES[role], _content(item.get("content"), f"{place}.content", may_be_null=role == "assistant"))


def _content(content: Any, place: str, *, may_be_null: bool) -> str:
    if isinstance(content, str):
        return content
    if content is None and may_be_null:
        return ""
    if not isinstance(content, list):
        raise InvalidRequest(f"{place} must be a string or a list of text parts")
    return "".join(_part(part, f"{place}[{index}]") for index, part in enumerate(content))


def _part(part: Any, place: str) -> str:
    text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
    if not isinstance(text, str):
        raise InvalidRequest(f"{place} must be a part of type text; this model reads nothing else")
    return text


def _sampling(fields: Mapping[str, Any]) -> Sampling:
    seed = _integer(fields, "seed", None, None)
    numbers = {
        "temperature": _number(fields, "temperature", 0, 5),
        "top_p": _number(fields, "top_p", 0, 2),
        "repetition_penalty": _number(fields, "repetition_penalty", 0, 2),
        "frequency_penalty": _number(fields, "frequency_penalty", -2, 2),
        "presence_penalty": _number(fields, "presence_penalty", -2, 2),
    }
    return Sampling(
        **{name: number for name, number in numbers.items() if number is not None},
        top_k=_integer(fields, "top_k", 0, 1_000_000) or 0,
        seed=None if seed is None else seed & _SEED_MASK,
    )


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(stops, list) or len(stops) > _MAX_STOPS:
        raise InvalidRequest(f"stop must be a string or a list of at most {_MAX_STOPS}")
    if not all(isinstance(stop, str) and 0 < len(stop) <= _MAX_STOP_LENGTH for stop in stops):
        raise InvalidRequest(f"each stop must be a string of 1 to {_MAX_STOP_LENGTH} characters")
    return tuple(dict.fromkeys(stops))


def _typed(fields: Mapping[str, Any], name: str, kind: type, words: str) -> Any:
    value = fields.get(name)
    if value is not None and not isinstance(value, kind):
        raise InvalidRequest(f"{name} must be {words}")
    return value


def _number(fields: Mapping[str, Any], name: str, low: float, high: float) -> float | None:
    value = fields.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InvalidRequest(f"{name} must be a number between {low} and {high}")
    return float(value)


def _integer(fields: Mapping[str, Any], name: str, low: int | None, high: int | None) -> int | None:
    value = fields.get(name)
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequest(f"{name} must be a whole number")
    if (low is not None and value < low) or (high is not None and value > high):
        raise InvalidRequest(f"{name} must be at least {low}" + (f" and at most {high}" if high is not None else ""))
    return value
