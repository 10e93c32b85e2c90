"""The response object and its stream events as bytes. Pure.

Source: OpenAI's API reference, "The response object" and "Streaming events".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from runtime.errors import GemlaneError
from runtime.generation import FinishReason, Usage
from runtime.messages import TokenScore
from runtime.openai.errors import error_fields
from runtime.openai.logprobs import render_chat_scores
from runtime.web.body import render_json
from runtime.web.streams import Answer, TextEnd, TextPiece

_PLACE: Final = {"output_index": 0, "content_index": 0}


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """What every object of one response repeats. ``number`` makes its ids; ``created_at`` is in Unix seconds."""

    number: str
    created_at: int
    model: str
    echoed: Mapping[str, Any]
    has_logprobs: bool = False

    def render(self, status: str, output: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """The response object in one of its states."""
        return {
            "id": f"resp_{self.number}",
            "object": "response",
            "created_at": self.created_at,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "max_tool_calls": None,
            "model": self.model,
            "output": output,
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "service_tier": "default",
            "store": False,
            "tool_choice": "auto",
            "tools": [],
            "truncation": "disabled",
            "usage": None,
            "user": None,
            **self.echoed,
            **more,
        }

    def message(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        """The one item of the output."""
        return {
            "id": f"msg_{self.number}",
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": content,
        }


def render_response(head: ResponseHead, answer: Answer) -> bytes:
    """A whole response."""
    part = _part(answer.text, answer.scores if head.has_logprobs else ())
    return render_json(_finished(head, part, answer.finish_reason, answer.usage))


class ResponseFrames:
    """The stream of one response: its events, each with its number."""

    def __init__(self, head: ResponseHead) -> None:
        self._head = head
        self._n_events = 0
        self._text = ""
        self._scores: list[TokenScore] = []
        self._reason = FinishReason.STOP

    def start(self) -> bytes:
        """The response, its item and its part, all still empty."""
        head = self._head
        item = {"output_index": 0, "item": head.message("in_progress", [])}
        part = {"item_id": f"msg_{head.number}", **_PLACE, "part": _part("", ())}
        return (
            self._event("response.created", response=head.render("in_progress", []))
            + self._event("response.in_progress", response=head.render("in_progress", []))
            + self._event("response.output_item.added", **item)
            + self._event("response.content_part.added", **part)
        )

    def text(self, piece: TextPiece) -> bytes:
        """The next characters."""
        self._text += piece.text
        self._scores += piece.scores
        logprobs = _logprobs(piece.scores) if self._head.has_logprobs else []
        return self._event("response.output_text.delta", **self._place(), delta=piece.text, logprobs=logprobs)

    def end(self, end: TextEnd) -> bytes:
        """The whole text, its part and its item."""
        self._reason = end.reason
        part = self._whole_part()
        return (
            self._event("response.output_text.done", **self._place(), text=self._text, logprobs=part["logprobs"])
            + self._event("response.content_part.done", **self._place(), part=part)
            + self._event("response.output_item.done", output_index=0, item=_item(self._head, part, end.reason))
        )

    def close(self, usage: Usage) -> bytes:
        """The response as it has become."""
        response = _finished(self._head, self._whole_part(), self._reason, usage)
        return self._event(f"response.{response['status']}", response=response)

    def error(self, error: Exception) -> bytes:
        """The error as an event of its own; OpenAI's Python client raises what stands under ``error``."""
        known = error if isinstance(error, GemlaneError) else GemlaneError("internal error")
        fields = error_fields(known)
        return self._event("error", **{key: fields[key] for key in ("code", "message", "param")}, error=fields)

    def _place(self) -> dict[str, Any]:
        return {"item_id": f"msg_{self._head.number}", **_PLACE}

    def _whole_part(self) -> dict[str, Any]:
        return _part(self._text, tuple(self._scores) if self._head.has_logprobs else ())

    def _event(self, kind: str, **fields: Any) -> bytes:
        data = {"type": kind, "sequence_number": self._n_events, **fields}
        self._n_events += 1
        return f"event: {kind}\ndata: ".encode() + render_json(data) + b"\n\n"


def _finished(head: ResponseHead, part: dict[str, Any], reason: FinishReason, usage: Usage) -> dict[str, Any]:
    is_cut = reason is FinishReason.LENGTH
    more: dict[str, Any] = {"incomplete_details": {"reason": "max_output_tokens"}} if is_cut else {}
    counts = {
        "input_tokens": usage.n_prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.n_cached_tokens},
        "output_tokens": usage.n_completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.n_total_tokens,
    }
    status = "incomplete" if is_cut else "completed"
    return head.render(status, [_item(head, part, reason)], usage=counts, **more)


def _item(head: ResponseHead, part: dict[str, Any], reason: FinishReason) -> dict[str, Any]:
    return head.message("incomplete" if reason is FinishReason.LENGTH else "completed", [part])


def _part(text: str, scores: tuple[TokenScore, ...]) -> dict[str, Any]:
    return {"type": "output_text", "annotations": [], "logprobs": _logprobs(scores), "text": text}


def _logprobs(scores: tuple[TokenScore, ...]) -> list[dict[str, Any]]:
    return list(render_chat_scores(scores)["content"])
