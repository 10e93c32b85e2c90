"""The prompts of a plain completion: one text or several, or token ids. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from runtime.errors import InvalidParameter, InvalidRequest
from runtime.generation import Prompt
from runtime.prompt.gemma import render_raw

MAX_PROMPTS: Final = 128
_MAX_TOKEN: Final = 2**31 - 1


def parse_prompts(body: Mapping[str, Any]) -> tuple[Prompt, ...]:
    """The prompts of ``prompt``: a string, a list of strings, a list of token ids, or a list of such lists.

    Raises:
        InvalidParameter: it is something else, too many, or empty token ids.
    """
    value = body.get("prompt")
    if isinstance(value, str):
        return (_text(value),)
    if not isinstance(value, list) or not value:
        raise InvalidParameter("prompt must be a string, token ids, or a list of these", "prompt")
    if _is_token(value[0]):
        return (_tokens(value),)
    if len(value) > MAX_PROMPTS:
        raise InvalidParameter(f"prompt may be a list of {MAX_PROMPTS} at most", "prompt")
    return tuple(_text(item) if isinstance(item, str) else _tokens(item) for item in value)


def _text(text: str) -> Prompt:
    try:
        return render_raw(text)
    except InvalidRequest as error:
        raise InvalidParameter(str(error), "prompt") from None


def _tokens(items: Any) -> Prompt:
    if not isinstance(items, list) or not items or not all(map(_is_token, items)):
        raise InvalidParameter("each prompt must be a string or a list of at least one token id", "prompt")
    return Prompt((), tokens=tuple(items))


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_TOKEN
