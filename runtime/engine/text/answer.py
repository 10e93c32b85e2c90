"""The text of one answer, from its tokens: whole characters, stop strings, control tokens kept out."""

from __future__ import annotations

from runtime.engine.text.detokenizer import Detokenizer
from runtime.engine.text.stops import StopMatcher
from runtime.generation import GenerationRequest
from runtime.messages import Text


class AnswerText:
    """Turns pieces into ``Text`` events whose texts concatenate to the answer."""

    def __init__(self, request: GenerationRequest) -> None:
        self._request_id = request.request_id
        self._detokenizer = Detokenizer()
        self._stops = StopMatcher(request.stop)
        self._n_tokens = 0

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string came."""
        return self._stops.is_stopped

    def push(self, piece: bytes) -> list[Text]:
        """The event that one more token's bytes bring, or none while text is held back."""
        self._n_tokens += 1
        return self._emit(self._stops.push(self._detokenizer.push(piece)))

    def flush(self) -> list[Text]:
        """The event for what was still held back at the end of the answer."""
        return self._emit(self._stops.push(self._detokenizer.flush()) + self._stops.flush())

    def _emit(self, text: str) -> list[Text]:
        if not text:
            return []
        n_tokens, self._n_tokens = self._n_tokens, 0
        return [Text(self._request_id, text, n_tokens)]
