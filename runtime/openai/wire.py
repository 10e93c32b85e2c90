"""OpenAI's objects and stream chunks as bytes. Pure.

Source: OpenAI's API reference, "The chat completion object", "The chat completion chunk object" and their kin.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from runtime.errors import GemlaneError
from runtime.generation import FinishReason, Usage
from runtime.openai.errors import render_error
from runtime.web.body import render_json

DONE: Final = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Head:
    """What every object of one answer repeats: its id, when it was made (Unix seconds), and the model as asked for."""

    id: str
    created: int
    model: str

    def render(self, kind: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """An object of that kind."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
            **more,
        }


def render_usage(usage: Usage) -> dict[str, Any]:
    """Token counts under OpenAI's names."""
    return {
        "prompt_tokens": usage.n_prompt_tokens,
        "completion_tokens": usage.n_completion_tokens,
        "total_tokens": usage.n_total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.n_cached_tokens},
    }


def render_chat(head: Head, text: str, reason: FinishReason, usage: Usage) -> bytes:
    """A whole chat completion."""
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason.value}
    return render_json(head.render("chat.completion", [choice], usage=render_usage(usage)))


def render_text(head: Head, text: str, reason: FinishReason, usage: Usage) -> bytes:
    """A whole plain completion."""
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": reason.value}
    return render_json(head.render("text_completion", [choice], usage=render_usage(usage)))


def render_models(names: list[tuple[str, int]]) -> bytes:
    """The list of models; each with the Unix time of its making."""
    return render_json({"object": "list", "data": [_model(name, created) for name, created in names]})


def render_model(name: str, created: int) -> bytes:
    """One model."""
    return render_json(_model(name, created))


class ChatFrames:
    """The stream of a chat completion: the role, the pieces, why it ended, usage if asked for, ``[DONE]``."""

    def __init__(self, head: Head, *, includes_usage: bool) -> None:
        self._head = head
        self._includes_usage = includes_usage
        self._has_role = False

    def text(self, text: str) -> bytes:
        """A chunk with the next characters; the role goes before the first."""
        role = b"" if self._has_role else self._chunk({"role": "assistant", "content": ""}, None)
        self._has_role = True
        return role + self._chunk({"content": text}, None)

    def end(self, reason: FinishReason, usage: Usage) -> bytes:
        """Why it ended, and all that follows."""
        role = b"" if self._has_role else self._chunk({"role": "assistant", "content": ""}, None)
        end = self._chunk({}, reason)
        if self._includes_usage:
            end += _frame(self._head.render("chat.completion.chunk", [], usage=render_usage(usage)))
        return role + end + DONE

    def error(self, error: Exception) -> bytes:
        """The error as an event, which OpenAI's clients raise."""
        return _error_frame(error)

    def _chunk(self, delta: dict[str, Any], reason: FinishReason | None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return _frame(self._head.render("chat.completion.chunk", [choice]))


class TextFrames:
    """The stream of a plain completion."""

    def __init__(self, head: Head, *, includes_usage: bool) -> None:
        self._head = head
        self._includes_usage = includes_usage

    def text(self, text: str) -> bytes:
        """A chunk with the next characters."""
        return self._chunk(text, None)

    def end(self, reason: FinishReason, usage: Usage) -> bytes:
        """Why it ended, and all that follows."""
        end = self._chunk("", reason)
        if self._includes_usage:
            end += _frame(self._head.render("text_completion", [], usage=render_usage(usage)))
        return end + DONE

    def error(self, error: Exception) -> bytes:
        """The error as an event, which OpenAI's clients raise."""
        return _error_frame(error)

    def _chunk(self, text: str, reason: FinishReason | None) -> bytes:
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}
        return _frame(self._head.render("text_completion", [choice]))


def _model(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "gemlane"}


def _frame(value: Any) -> bytes:
    return b"data: " + render_json(value) + b"\n\n"


def _error_frame(error: Exception) -> bytes:
    known = error if isinstance(error, GemlaneError) else GemlaneError("internal error")
    return b"data: " + render_error(known)[1] + b"\n\n"
