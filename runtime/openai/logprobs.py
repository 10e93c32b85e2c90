"""Logprobs in OpenAI's two forms: of chats, and of plain completions. Pure.

Source: OpenAI's API reference, "The chat completion object" and "The completion object".
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from runtime.messages import Alternative, TokenScore


def render_chat_scores(scores: Sequence[TokenScore]) -> dict[str, Any]:
    """``logprobs`` of a chat's choice."""
    return {"content": [_chat_token(score) for score in scores], "refusal": None}


class TextScores:
    """``logprobs`` of plain completions, piece by piece: offsets go on from one to the next."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._offset = 0

    def render(self, scores: Sequence[TokenScore]) -> dict[str, Any]:
        """The next tokens: four lists of one length. A token's own logprob stands among its alternatives."""
        offsets = []
        for score in scores:
            offsets.append(self._offset)
            self._offset += len(self._decoder.decode(score.piece))
        return {
            "tokens": [_token_text(score.piece) for score in scores],
            "token_logprobs": [score.logprob for score in scores],
            "top_logprobs": [_top(score) for score in scores],
            "text_offset": offsets,
        }


def _chat_token(score: TokenScore) -> dict[str, Any]:
    top = [_alternative(one) for one in score.alternatives]
    return {**_alternative(Alternative(score.piece, score.logprob or 0.0)), "top_logprobs": top}


def _alternative(one: Alternative) -> dict[str, Any]:
    return {"token": _token_text(one.piece), "logprob": one.logprob, "bytes": list(one.piece)}


def _top(score: TokenScore) -> dict[str, float] | None:
    if score.logprob is None:
        return None
    found: dict[str, float] = {}
    for one in (*score.alternatives, Alternative(score.piece, score.logprob)):
        found.setdefault(_token_text(one.piece), one.logprob)
    return found


def _token_text(piece: bytes) -> str:
    r"""A token's text; bytes of an incomplete character in OpenAI's notation, ``bytes:\xe2\x80``."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)
