"""What happened on the web side, as values, and who may listen.

Nothing here knows HTTP, a log's format or a metric's name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from runtime.generation import Blend, Usage


@dataclass(frozen=True, slots=True)
class AnswerStarted:
    """The prompt of an answer has been read.

    ``queue_s`` is the time from submission to a place among the running sequences, ``lane_wait_s`` the time from there
    until the weights of the blend were in place.
    """

    request_id: str
    blend: Blend
    n_prompt_tokens: int
    n_cached_tokens: int
    queue_s: float
    lane_wait_s: float


@dataclass(frozen=True, slots=True)
class TokensCame:
    """The next text of an answer: ``n_tokens`` tokens, ``gap_s`` after the text before, or after the submission."""

    request_id: str
    blend: Blend
    n_tokens: int
    gap_s: float
    is_first: bool


@dataclass(frozen=True, slots=True)
class AnswerEnded:
    """An answer ended.

    ``outcome`` is the finish reason (``stop``, ``length``), ``cancelled`` if the client went away, else the code of the
    error. ``usage`` counts what had been made until then. ``first_token_s`` is None if no token came.
    """

    request_id: str
    blend: Blend
    outcome: str
    usage: Usage
    first_token_s: float | None
    total_s: float


@dataclass(frozen=True, slots=True)
class RequestEnded:
    """An HTTP request was answered, or its client went away (status 499).

    ``route`` is the pattern that matched, empty if none did; ``error`` is the code of the error, empty if none.
    """

    request_id: str
    method: str
    path: str
    route: str
    status: int
    error: str
    elapsed_s: float


Event = AnswerStarted | TokensCame | AnswerEnded | RequestEnded


class Observer(Protocol):
    """Takes every event, in order, on the event loop; it must not block or raise."""

    def observe(self, event: Event) -> None:
        """Take one event."""


class Observers:
    """Several observers as one."""

    def __init__(self, observers: Sequence[Observer] = ()) -> None:
        self._observers = tuple(observers)

    def observe(self, event: Event) -> None:
        """Give the event to each observer."""
        for observer in self._observers:
            observer.observe(event)
