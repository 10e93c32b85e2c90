"""The text of one answer, from its tokens: whole characters, no stop string, no control token."""

from __future__ import annotations

from runtime.engine.text.detokenizer import Detokenizer
from runtime.engine.text.stops import StopMatcher
from runtime.generation import GenerationRequest
from runtime.messages import Text, TokenScore


class AnswerText:
    """Turns pieces into ``Text`` events whose texts concatenate to the answer."""

    def __init__(self, request: GenerationRequest) -> None:
        self._request_id = request.request_id
        self._detokenizer = Detokenizer()
        self._stops = StopMatcher(request.stop)
        self._n_tokens = 0
        self._scores: list[TokenScore] = []

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string was found."""
        return self._stops.is_stopped

    def push(self, piece: bytes, score: TokenScore | None = None) -> list[Text]:
        """Add the bytes of one token; return the event with new text, or none while text is held back."""
        self._n_tokens += 1
        if score is not None:
            self._scores.append(score)
        return self._emit(self._stops.push(self._detokenizer.push(piece)))

    def flush(self) -> list[Text]:
        """End the answer; return the event with the text that was held back, if any."""
        return self._emit(self._stops.push(self._detokenizer.flush()) + self._stops.flush())

    def _emit(self, text: str) -> list[Text]:
        if not text:
            return []
        n_tokens, self._n_tokens = self._n_tokens, 0
        scores, self._scores = tuple(self._scores), []
        return [Text(self._request_id, text, n_tokens, scores)]
