"""What a body says of drafts: llama-server's ``speculative.n_max``, and OpenAI's ``prediction``. Pure.

Neither changes an answer: both change only how soon it comes.

Sources: llama.cpp ``tools/server/README.md``; OpenAI's API reference, "Create chat completion", and its guide
"Predicted Outputs".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from runtime.chat.fields import Field, check_unicode, integer
from runtime.errors import InvalidParameter

DRAFT_KEY: Final = "speculative.n_max"
_TEXT: Final = {"type": "string"}
_PART: Final = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": _TEXT},
    "required": ["type", "text"],
}
_PREDICTION: Final = {
    "type": ["object", "null"],
    "properties": {"type": {"const": "content"}, "content": {"anyOf": [_TEXT, {"type": "array", "items": _PART}]}},
    "required": ["type", "content"],
}


def _prediction() -> Field:
    """A text, or text parts that are put together."""

    def read(name: str, value: Any) -> str:
        if not isinstance(value, dict) or value.get("type") != "content":
            raise InvalidParameter(f"{name} must be an object of type 'content'", name)
        content = value.get("content")
        parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
        texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text"]
        known = [text for text in texts if isinstance(text, str)]
        if len(known) < len(parts):
            raise InvalidParameter(f"{name}.content must be a string or a list of text parts", name)
        whole = "".join(known)
        check_unicode(name, whole)
        return whole

    return Field(read, _PREDICTION)


DRAFT_FIELDS: Final[Mapping[str, Field]] = {
    DRAFT_KEY: integer(0, 2**31 - 1),
    "prediction": _prediction(),
}
