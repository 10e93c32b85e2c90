"""The seam between an answer and the bytes of a dialect's stream. Pure."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from runtime.generation import FinishReason, Usage


@runtime_checkable
class Frames(Protocol):
    """How one dialect writes one streamed answer; one object for each answer."""

    def text(self, text: str) -> bytes:
        """The next characters."""

    def end(self, reason: FinishReason, usage: Usage) -> bytes:
        """All that follows the last characters."""

    def error(self, error: Exception) -> bytes:
        """What an answer that breaks off says last, or nothing."""
