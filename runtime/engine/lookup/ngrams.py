"""Where the last tokens of a sequence occurred before, and what followed them there. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import takewhile

N = 3
"""Tokens that have to be equal: by chance two often are, and with four a draft begins later in each quotation."""
# Tokens that are compared, at most, to see how far two passages agree.
_MAX_EQUAL = 16


class _Index:
    """For each run of ``N`` tokens of a list that may grow: the places after it that others follow, in order."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = tokens
        self._places: dict[tuple[int, ...], list[int]] = {}
        self._n_indexed = 0

    def find(self, run: tuple[int, ...]) -> list[int]:
        """The places after the occurrences of ``run``."""
        self._catch_up()
        return self._places.get(run, [])

    def _catch_up(self) -> None:
        """Add the runs that end at a later place than those added before, and not at the last token."""
        start, n_tokens = self._n_indexed, len(self.tokens)
        if n_tokens - start > N:
            new = self.tokens[start:]
            runs = zip(*(new[place:] for place in range(N)), strict=False)
            for run, place in zip(runs, range(start + N, n_tokens), strict=False):
                self._places.setdefault(run, []).append(place)
            self._n_indexed = n_tokens - N


class Ngrams:
    """Looks the end of one sequence up in the sequence itself, and in a guess of its answer if there is one."""

    def __init__(self, tokens: Sequence[int], guess: Sequence[int] = ()) -> None:
        """Index nothing yet: the first ``follow`` does.

        Args:
            tokens: those of the sequence; a list that grows with the answer.
            guess: what the answer may be, from its first token on.
        """
        self._tokens = tokens
        self._own = _Index(tokens)
        # The guess stands where the answer will: after the end of the prompt.
        self._guess = _Index([*tokens[-(N - 1) :], *guess])
        self._source, self._place, self._seen_at = self._own, 0, 0
        self._guess_place = 0
        """The place in the guess that the answer has come to."""

    def follow(self, n_tokens: int) -> list[int]:
        """What followed the last ``N`` tokens of the sequence before: ``n_tokens`` at most, none if they are new.

        Where the guess ends, the sequence itself is looked up. A passage of the sequence that reaches its end is
        repeated, as a text that runs in a circle is.
        """
        run = tuple(self._tokens[-N:])
        self._find(run)
        if not self._place or n_tokens <= 0:
            return []
        if self._source is self._own:
            return self._repeat(self._place, [], n_tokens)
        draft = list(self._guess.tokens[self._place : self._place + n_tokens])
        places = self._own.find((*run, *draft)[-N:]) if len(draft) < n_tokens else []
        return draft + self._repeat(places[-1], draft, n_tokens - len(draft)) if places else draft

    @property
    def n_more_equal(self) -> int:
        """Tokens that agree before the ``N`` that have to, where the last draft comes from; 13 at most."""
        return self._n_equal(self._source, self._place) - N if self._place else 0

    def _repeat(self, place: int, draft: list[int], n_tokens: int) -> list[int]:
        """The ``n_tokens`` that follow ``place`` in the sequence, which goes on with a draft and then with them."""
        passage = [*self._tokens[place : place + n_tokens], *draft]
        return (passage * -(-n_tokens // len(passage)))[:n_tokens]

    def _find(self, run: tuple[int, ...]) -> None:
        """Set the place that the sequence now follows; 0 if there is none.

        A place that the answer has followed until here is kept, though the run may occur elsewhere too.
        """
        if self._place:
            self._place += len(self._tokens) - self._seen_at
            if self._source is self._guess:
                self._guess_place = self._place
        self._seen_at = len(self._tokens)
        tokens = self._source.tokens
        if self._place < len(tokens) and tuple(tokens[max(0, self._place - N) : self._place]) == run:
            return
        self._source, self._place = max(self._candidates(run), key=lambda one: self._n_equal(*one))

    def _candidates(self, run: tuple[int, ...]) -> list[tuple[_Index, int]]:
        """Where ``run`` may be followed, the place to be taken among equal ones first; the last one is place 0.

        A guess that repeats itself is read on from where the answer is, and at its end from its start. Of the
        sequence's own passages the latest one is the likeliest.
        """
        candidates = []
        if places := self._guess.find(run):
            at = bisect_left(places, self._guess_place)
            candidates.append((self._guess, places[at] if at < len(places) else places[0]))
        if places := self._own.find(run):
            candidates.append((self._own, places[-1]))
        return [*candidates, (self._own, 0)]

    def _n_equal(self, source: _Index, place: int) -> int:
        """Tokens before a place that equal the last ones of the sequence, as far as they are compared."""
        mine, others = self._tokens[-_MAX_EQUAL:], source.tokens[max(0, place - _MAX_EQUAL) : place]
        pairs = zip(reversed(mine), reversed(others), strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
