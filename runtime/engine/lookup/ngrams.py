"""Where the last tokens of a sequence occurred before, and what followed them there. Pure."""

from __future__ import annotations

from collections.abc import Sequence

N = 3
"""Tokens that have to be equal: by chance two often are, and with four a draft begins later in each quotation."""


class _Index:
    """For each run of ``N`` tokens of a list that may grow: the place after its last occurrence that others follow."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = tokens
        self._places: dict[tuple[int, ...], int] = {}
        self._n_indexed = 0

    def find(self, run: tuple[int, ...]) -> int | None:
        """The place after the last occurrence of ``run``, or None."""
        self._catch_up()
        return self._places.get(run)

    def _catch_up(self) -> None:
        """Add the runs that end at a later place than those added before, and not at the last token."""
        start, n_tokens = self._n_indexed, len(self.tokens)
        if n_tokens - start > N:
            new = self.tokens[start:]
            runs = zip(*(new[place:] for place in range(N)), strict=False)
            self._places.update(zip(runs, range(start + N, n_tokens), strict=False))
            self._n_indexed = n_tokens - N


class Ngrams:
    """Looks the end of one sequence up in the sequence itself, and in a guess of its answer if there is one."""

    def __init__(self, tokens: Sequence[int], guess: Sequence[int] = ()) -> None:
        """Index nothing yet: the first ``follow`` does.

        Args:
            tokens: of the sequence; a list that grows with the answer.
            guess: what the answer may be, from its first token on.
        """
        self._tokens = tokens
        self._own = _Index(tokens)
        # The guess stands where the answer will: after the end of the prompt.
        self._guess = _Index([*tokens[-(N - 1) :], *guess])
        self._source, self._place, self._seen_at = self._own, 0, 0

    def follow(self, n_tokens: int) -> list[int]:
        """What followed the last ``N`` tokens of the sequence before: ``n_tokens`` at most, none if they are new.

        A passage of the sequence that reaches its end is repeated, as a text that runs in a circle is.
        """
        run = tuple(self._tokens[-N:])
        self._find(run)
        if not self._place or n_tokens <= 0:
            return []
        passage = list(self._source.tokens[self._place : self._place + n_tokens])
        if self._source is self._own:
            passage *= -(-n_tokens // len(passage))
        return passage[:n_tokens]

    def _find(self, run: tuple[int, ...]) -> None:
        """Set the place that the sequence now follows; 0 if there is none.

        A place that the answer has followed until here is kept, though the run may occur later again.
        """
        self._place += len(self._tokens) - self._seen_at if self._place else 0
        self._seen_at = len(self._tokens)
        tokens = self._source.tokens
        if self._place < len(tokens) and tuple(tokens[max(0, self._place - N) : self._place]) == run:
            return
        for source in (self._guess, self._own):
            place = source.find(run)
            if place is not None:
                self._source, self._place = source, place
                return
        self._place = 0
