"""OpenAI's objects and stream chunks as bytes. Pure.

Source: OpenAI's API reference, "The chat completion object", "The chat completion chunk object" and related objects;
``root`` and ``parent`` of a model are vLLM's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from runtime.errors import GemlaneError
from runtime.generation import FinishReason, Usage
from runtime.openai.errors import render_error
from runtime.openai.logprobs import TextScores, render_chat_scores
from runtime.web.body import render_json
from runtime.web.streams import Answer, TextEnd, TextPiece, total_usage

DONE: Final = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Head:
    """What every object of one request repeats: its id, its Unix time, and the model as asked for.

    ``n_for_each_prompt`` successive choices share a prompt; ``has_logprobs`` says whether each choice has its logprobs.
    """

    id: str
    created: int
    model: str
    n_for_each_prompt: int = 1
    has_logprobs: bool = False

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


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One model of the list: its id, the Unix time it was made, and the adapter it is, if it is one."""

    id: str
    created: int
    adapter: str = ""
    parent: str = ""


def render_usage(usage: Usage) -> dict[str, Any]:
    """Token counts under OpenAI's names."""
    return {
        "prompt_tokens": usage.n_prompt_tokens,
        "completion_tokens": usage.n_completion_tokens,
        "total_tokens": usage.n_total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.n_cached_tokens},
        "completion_tokens_details": {
            "accepted_prediction_tokens": usage.n_accepted_tokens,
            "rejected_prediction_tokens": usage.n_rejected_tokens,
        },
    }


def render_chat(head: Head, answers: Sequence[Answer]) -> bytes:
    """A whole chat completion, a choice for each answer."""
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": render_chat_scores(answer.scores) if head.has_logprobs else None,
            "finish_reason": answer.finish_reason.value,
        }
        for index, answer in enumerate(answers)
    ]
    return _whole(head, "chat.completion", choices, answers)


def render_text(head: Head, answers: Sequence[Answer]) -> bytes:
    """A whole plain completion, a choice for each answer."""
    choices = [
        {
            "index": index,
            "text": answer.text,
            "logprobs": TextScores().render(_with_end(answer)) if head.has_logprobs else None,
            "finish_reason": answer.finish_reason.value,
        }
        for index, answer in enumerate(answers)
    ]
    return _whole(head, "text_completion", choices, answers)


def render_models(entries: Sequence[ModelEntry]) -> bytes:
    """The list of models."""
    return render_json({"object": "list", "data": [_model(entry) for entry in entries]})


def render_model(entry: ModelEntry) -> bytes:
    """One model."""
    return render_json(_model(entry))


class ChatFrames:
    """The stream of a chat completion: roles, pieces, why each choice ended, usage if asked for, ``[DONE]``."""

    def __init__(self, head: Head, n_choices: int, *, includes_usage: bool) -> None:
        self._head = head
        self._n_choices = n_choices
        self._includes_usage = includes_usage

    def start(self) -> bytes:
        """A chunk with the role of each choice."""
        role = {"role": "assistant", "content": ""}
        return b"".join(self._chunk(index, role, None) for index in range(self._n_choices))

    def text(self, piece: TextPiece) -> bytes:
        """A chunk with the next characters."""
        scores = render_chat_scores(piece.scores) if self._head.has_logprobs else None
        return self._chunk(piece.index, {"content": piece.text}, None, scores)

    def end(self, end: TextEnd) -> bytes:
        """Why a choice ended."""
        return self._chunk(end.index, {}, end.reason)

    def close(self, usage: Usage) -> bytes:
        """Usage if it was asked for, and the end."""
        head = self._head
        counts = _frame(head.render("chat.completion.chunk", [], usage=render_usage(usage)))
        return (counts if self._includes_usage else b"") + DONE

    def error(self, error: Exception) -> bytes:
        """The error as an event, which OpenAI's clients raise."""
        return _error_frame(error)

    def _chunk(
        self, index: int, delta: dict[str, Any], reason: FinishReason | None, logprobs: dict[str, Any] | None = None
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return _frame(self._head.render("chat.completion.chunk", [choice]))


class TextFrames:
    """The stream of a plain completion."""

    def __init__(self, head: Head, *, includes_usage: bool) -> None:
        self._head = head
        self._includes_usage = includes_usage
        self._scores: defaultdict[int, TextScores] = defaultdict(TextScores)

    def start(self) -> bytes:
        """Nothing: the first chunk has text."""
        return b""

    def text(self, piece: TextPiece) -> bytes:
        """A chunk with the next characters."""
        scores = self._scores[piece.index].render(piece.scores) if self._head.has_logprobs else None
        return self._chunk(piece.index, piece.text, None, scores)

    def end(self, end: TextEnd) -> bytes:
        """Why a choice ended."""
        scores = self._scores[end.index].render([end.end_score]) if end.end_score else None
        return self._chunk(end.index, "", end.reason, scores)

    def close(self, usage: Usage) -> bytes:
        """Usage if it was asked for, and the end."""
        counts = _frame(self._head.render("text_completion", [], usage=render_usage(usage)))
        return (counts if self._includes_usage else b"") + DONE

    def error(self, error: Exception) -> bytes:
        """The error as an event, which OpenAI's clients raise."""
        return _error_frame(error)

    def _chunk(self, index: int, text: str, reason: FinishReason | None, logprobs: dict[str, Any] | None) -> bytes:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        return _frame(self._head.render("text_completion", [choice]))


def _whole(head: Head, kind: str, choices: list[dict[str, Any]], answers: Sequence[Answer]) -> bytes:
    usage = total_usage([answer.usage for answer in answers], head.n_for_each_prompt)
    return render_json(head.render(kind, choices, usage=render_usage(usage)))


def _with_end(answer: Answer) -> Sequence[Any]:
    return answer.scores if answer.end_score is None else (*answer.scores, answer.end_score)


def _model(entry: ModelEntry) -> dict[str, Any]:
    known = {"id": entry.id, "object": "model", "created": entry.created, "owned_by": "gemlane"}
    return {**known, "root": entry.adapter or entry.id, "parent": entry.parent or None}


def _frame(value: Any) -> bytes:
    return b"data: " + render_json(value) + b"\n\n"


def _error_frame(error: Exception) -> bytes:
    known = error if isinstance(error, GemlaneError) else GemlaneError("internal error")
    return b"data: " + render_error(known)[1] + b"\n\n"
