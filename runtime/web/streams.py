"""The seam between answers and the bytes of a dialect: what both sides pass to each other. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from runtime.generation import FinishReason, Usage
from runtime.messages import TokenScore


@dataclass(frozen=True, slots=True)
class TextPiece:
    """The next characters of one of the answers to a request, and the logprobs of their tokens if wanted."""

    index: int
    text: str
    scores: tuple[TokenScore, ...] = ()


@dataclass(frozen=True, slots=True)
class TextEnd:
    """One of the answers to a request is whole."""

    index: int
    reason: FinishReason
    usage: Usage
    end_score: TokenScore | None = None
    """The logprob of the token by which the model ended it, if logprobs are wanted."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer, the prompt included where it is echoed."""

    text: str
    finish_reason: FinishReason
    usage: Usage
    scores: tuple[TokenScore, ...] = ()
    end_score: TokenScore | None = None


@runtime_checkable
class Frames(Protocol):
    """How one dialect writes the stream of one request; one object for each request."""

    def start(self) -> bytes:
        """What goes out with the headers, before any text."""

    def text(self, piece: TextPiece) -> bytes:
        """The next characters."""

    def end(self, end: TextEnd) -> bytes:
        """The end of one answer."""

    def close(self, usage: Usage) -> bytes:
        """The end of the stream; ``usage`` counts all answers."""

    def error(self, error: Exception) -> bytes:
        """What an answer that breaks off says last: the error, in a form that no client takes for text."""


def total_usage(usages: Sequence[Usage], n_for_each_prompt: int = 1) -> Usage:
    """The tokens of several answers; a prompt that ``n_for_each_prompt`` successive ones share counts once."""
    firsts = usages[::n_for_each_prompt]
    return Usage(
        n_prompt_tokens=sum(usage.n_prompt_tokens for usage in firsts),
        n_completion_tokens=sum(usage.n_completion_tokens for usage in usages),
        n_cached_tokens=sum(usage.n_cached_tokens for usage in firsts),
        n_drafted_tokens=sum(usage.n_drafted_tokens for usage in usages),
        n_accepted_tokens=sum(usage.n_accepted_tokens for usage in usages),
    )
