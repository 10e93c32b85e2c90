"""Gemma's chat template: messages -> Prompt.

Control tokens and text are kept in segments of their own, so that ``<end_of_turn>`` typed by a user stays text, and so
that the text between two control tokens is tokenised as one piece (Gemma's tokenizer may join across what we add and
what the user wrote). The engine adds ``<bos>``.

Source: npm ``@cloudflare/ai`` 1.2.2, template ``gemma``, executed: user and assistant turns, every other role left out,
nothing trimmed, no check that roles alternate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from runtime.errors import InvalidRequest
from runtime.generation import Prompt, Segment

_START = "<start_of_turn>"
_END = "<end_of_turn>"
_TURN_OF = {"user": "user", "assistant": "model"}


class SystemRole(StrEnum):
    """How system messages are treated; Gemma was not trained on them."""

    FOLD = "fold"
    """Their text and a blank line go before the text of the first user turn; without one, they become a user turn."""
    DROP = "drop"
    """They are left out, as Cloudflare did in 2024."""
    REJECT = "reject"
    """They are refused."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation, in the words of the client."""

    role: str
    content: str


def render_raw(text: str) -> Prompt:
    """``text`` unchanged; control tokens written in it are tokens.

    Raises:
        InvalidRequest: the text holds a lone surrogate.
    """
    return _prompt(iter([(text, True)]))


def render(messages: Sequence[Message], system_role: SystemRole) -> Prompt:
    """The conversation in Gemma's template, open for the model's turn.

    A role that is not system, user or assistant is left out, as Cloudflare does.

    Raises:
        InvalidRequest: a system message where these are rejected, or a text with a lone surrogate.
    """
    if system_role is SystemRole.REJECT and any(message.role == "system" for message in messages):
        raise InvalidRequest("system role not supported; put its text into the first user message")
    turns = fold_system(messages) if system_role is SystemRole.FOLD else messages
    return _prompt(_parts(turns), is_chat=True)


def fold_system(messages: Sequence[Message]) -> list[Message]:
    """The messages without system messages, whose text goes before the text of the first user turn.

    Without a user turn the system text becomes the first one.
    """
    system = [message.content for message in messages if message.role == "system"]
    turns = [message for message in messages if message.role != "system"]
    if not system:
        return turns
    first = next((index for index, message in enumerate(turns) if message.role == "user"), None)
    if first is None:
        return [Message("user", "\n\n".join(system)), *turns]
    turns[first] = Message("user", "\n\n".join([*system, turns[first].content]))
    return turns


def _parts(messages: Sequence[Message]) -> Iterator[tuple[str, bool]]:
    """The template's pieces, and whether each may hold control tokens."""
    for message in messages:
        if message.role in _TURN_OF:
            yield _START, True
            yield f"{_TURN_OF[message.role]}\n{message.content}", False
            yield _END, True
            yield "\n", False
    yield _START, True
    yield "model\n", False


def _prompt(parts: Iterator[tuple[str, bool]], *, is_chat: bool = False) -> Prompt:
    try:
        return Prompt(tuple(Segment(text, has_control_tokens) for text, has_control_tokens in parts), is_chat)
    except ValueError as error:
        raise InvalidRequest(str(error)) from None
