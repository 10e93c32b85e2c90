"""The messages of a chat -> turns of a conversation. Pure.

A chat may come from a model that calls tools: its calls are shown in the model's turn as JSON, and their results as
turns of the user, so that this model can go on with what they say.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any, Final

from runtime.errors import InvalidParameter
from runtime.prompt.gemma import Message

MAX_MESSAGES: Final = 10_000
"""More fit into no context window: each takes at least five tokens of Gemma's template."""
ROLES: Final[Mapping[str, str]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "user",
    "function": "user",
}
"""The roles of a chat, and the role that each has in the template."""
TEXT_PARTS: Final = ("text", "input_text", "output_text")
_MAY_BE_NULL: Final = ("assistant", "tool", "function")
_MAX_ECHO: Final = 100


def parse_messages(items: Any, name: str = "messages") -> tuple[Message, ...]:
    """The conversation. The text parts of one message are joined with line breaks.

    Args:
        items: the value of the key ``name``.
        name: for errors.

    Raises:
        InvalidParameter: no list of messages, an unknown role, or content that is not text.
    """
    if not isinstance(items, list) or not items:
        raise InvalidParameter(f"{name} must be a list of at least one message", name)
    if len(items) > MAX_MESSAGES:
        raise InvalidParameter(f"{name} may hold {MAX_MESSAGES} messages at most", name)
    return tuple(_message(item, f"{name}[{index}]") for index, item in enumerate(items))


def parse_content(content: Any, place: str, *, may_be_null: bool = False) -> str:
    """The text of one message.

    Raises:
        InvalidParameter: it is neither a string nor a list of text parts.
    """
    if isinstance(content, str):
        return content
    if content is None and may_be_null:
        return ""
    if not isinstance(content, list):
        raise InvalidParameter(f"{place} must be a string or a list of text parts", place)
    return "\n".join(_part(part, f"{place}[{index}]") for index, part in enumerate(content))


def render_call(name: Any, arguments: Any) -> str:
    """A call of a tool as the model's own text."""
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError, RecursionError):
            arguments = json.loads(arguments)
    return json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)


def _message(item: Any, place: str) -> Message:
    if not isinstance(item, dict):
        raise InvalidParameter(f"{place} must be an object", place)
    role = item.get("role")
    if not isinstance(role, str) or role not in ROLES:
        words = f"one of {', '.join(ROLES)}, not {str(role)[:_MAX_ECHO]!r}"
        raise InvalidParameter(f"{place}.role must be {words}", f"{place}.role")
    text = parse_content(item.get("content"), f"{place}.content", may_be_null=role in _MAY_BE_NULL)
    if role == "assistant":
        text = "\n".join([*([text] if text else []), *_calls(item, place)])
    return Message(ROLES[role], text)


def _calls(item: Mapping[str, Any], place: str) -> list[str]:
    """The calls that an assistant's message made, in today's form and in the first one."""
    calls = item.get("tool_calls") or []
    if not isinstance(calls, list):
        raise InvalidParameter(f"{place}.tool_calls must be a list", f"{place}.tool_calls")
    functions = [call.get("function") if isinstance(call, dict) else None for call in calls]
    functions += [item["function_call"]] if item.get("function_call") is not None else []
    if not all(isinstance(function, dict) for function in functions):
        raise InvalidParameter(f"{place}.tool_calls must hold functions", f"{place}.tool_calls")
    return [render_call(function.get("name"), function.get("arguments")) for function in functions if function]


def _part(part: Any, place: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    text = part.get("refusal" if kind == "refusal" else "text") if kind in (*TEXT_PARTS, "refusal") else None
    if not isinstance(text, str):
        raise InvalidParameter(f"{place} must be a part of type text; this model takes nothing else", place)
    return text
