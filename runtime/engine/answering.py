"""How one admitted sequence answers: its sampler, its grammar, its text and its logprobs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from runtime.engine.sequence import Sequence
from runtime.engine.text.answer import AnswerText
from runtime.llama.context import Context
from runtime.llama.grammar import GrammarMatcher
from runtime.llama.sampler import Sampler
from runtime.llama.scores import score
from runtime.messages import Alternative, PromptScores, TokenScore


@dataclass(frozen=True, slots=True)
class ChosenToken:
    """The next token of an answer, and its logprob if that was asked for."""

    token: int
    score: TokenScore | None


class Answering:
    """Owns the native memory of one sequence's sampler."""

    def __init__(self, sequence: Sequence, context: Context, matcher: GrammarMatcher | None) -> None:
        self._sequence = sequence
        self._context = context
        self._matcher = matcher
        self._sampler = Sampler(sequence.request.sampling, sequence.tokens, context, matcher)
        self.text = AnswerText(sequence.request)

    @property
    def is_complete(self) -> bool:
        """Whether nothing can follow: a stop string came, or the grammar is matched to its end."""
        return self.text.is_stopped or (self._matcher is not None and self._matcher.is_complete)

    def choose(self, row: int) -> ChosenToken:
        """The next token, from the logits at ``row`` of the last batch.

        Raises:
            UnsupportedGrammar: the grammar turned out too complex at this place.
        """
        token = self._sampler.sample(row)
        is_scored = self._sequence.request.n_logprobs is not None
        return ChosenToken(token, self._score(row, token) if is_scored else None)

    def prompt_scores(self, n_tokens: int, row: int) -> Iterator[PromptScores]:
        """The logprobs that the last batch gives: it computed the prompt's last ``n_tokens`` tokens until now.

        Args:
            n_tokens: number of tokens of the prompt, all with logits.
            row: that of the last one's logits.
        """
        sequence = self._sequence
        start = sequence.n_computed - n_tokens
        scores = []
        if start == 0 and not self._context.model.is_bos_added(sequence.request.prompt):
            scores.append(TokenScore(self._context.model.name(sequence.tokens[0]), None))
        for place, token in enumerate(sequence.tokens[start + 1 : start + n_tokens + 1]):
            scores.append(self._score(row - n_tokens + 1 + place, token))
        if scores:
            yield PromptScores(sequence.request_id, tuple(scores))

    def _score(self, row: int, token: int) -> TokenScore:
        model = self._context.model
        found = score(self._context.logits(row), token, self._sequence.request.n_logprobs or 0)
        alternatives = tuple(Alternative(model.name(one), logprob) for one, logprob in found.likeliest)
        return TokenScore(model.name(token), found.logprob, alternatives)

    def free(self) -> None:
        """Give the native memory back."""
        self._sampler.free()
