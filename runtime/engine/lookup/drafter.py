"""Adds drafts to batches: for the sequences whose text repeats itself, as long as the model accepts them.

A drafted token goes through the model beside the tokens of its batch. The sequence's own sampler then chooses each
token from the logits after the one before, as without a draft; the draft holds as far as it equals the choices. So
answers stay the same: drafts only make more of them in one step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container
from collections.abc import Sequence as Row
from dataclasses import dataclass

from runtime.engine.lookup.acceptance import Acceptance
from runtime.engine.lookup.costs import StepCosts
from runtime.engine.lookup.ngrams import Ngrams
from runtime.engine.lookup.shares import Offer, share_out
from runtime.engine.scheduler import BatchPart, EngineLimits
from runtime.engine.sequence import Sequence, State


@dataclass(frozen=True, slots=True)
class _Drafting:
    """What is known of one sequence."""

    ngrams: Ngrams
    acceptance: Acceptance

    def offer(self, n_tokens: int) -> Offer:
        """The first ``n_tokens`` of the last draft, and how likely they are."""
        return Offer(n_tokens, self.acceptance.probability(self.ngrams.n_more_equal))


class Drafter:
    """Owns what is known of each sequence that may draft, and of what steps cost."""

    def __init__(self, limits: EngineLimits, end_tokens: Container[int]) -> None:
        """Know no sequence yet.

        Args:
            limits: those of the engine.
            end_tokens: those that end an answer; nothing is drafted from the first of them on.
        """
        self._limits = limits
        self._end_tokens = end_tokens
        self._costs = StepCosts()
        self._drafting: dict[Sequence, _Drafting] = {}
        self.n_drafted = 0
        """Tokens drafted since the start."""
        self.n_accepted = 0
        """Those of them that were accepted."""

    def begin(self, sequence: Sequence) -> None:
        """Let a sequence draft that has no answer yet, if its request and the engine's limits allow it."""
        if self._n_draft_max(sequence):
            self._drafting[sequence] = _Drafting(Ngrams(sequence.tokens, sequence.guess), Acceptance())

    def end(self, sequence: Sequence) -> None:
        """Forget a sequence."""
        self._drafting.pop(sequence, None)

    def extend(self, batch: list[BatchPart]) -> list[BatchPart]:
        """The batch with drafts where they are worth it; a batch that reads prompts stays as it is."""
        if not self._drafting or any(part.sequence.state is not State.DECODE for part in batch):
            return batch
        drafts = {part: draft for part in batch if (draft := self._draft(part.sequence))}
        if not drafts:
            return batch
        offers = [self._drafting[part.sequence].offer(len(draft)) for part, draft in drafts.items()]
        room = min(self._limits.n_scored, self._limits.n_batch - len(batch))
        granted = dict(zip(drafts, share_out(offers, len(batch), room, self._costs.cost), strict=True))
        for part, n_tokens in granted.items():
            if not n_tokens:
                self._drafting[part.sequence].acceptance.refused()
        return [
            dataclasses.replace(part, draft=drafts[part][:n_tokens]) if (n_tokens := granted.get(part, 0)) else part
            for part in batch
        ]

    def _n_draft_max(self, sequence: Sequence) -> int:
        wanted = sequence.request.n_draft_max
        return self._limits.n_draft_max if wanted is None else min(wanted, self._limits.n_draft_max)

    def _draft(self, sequence: Sequence) -> tuple[int, ...]:
        """What may follow; never so much that the answer could not take one more token."""
        drafting = self._drafting.get(sequence)
        if drafting is None or not drafting.acceptance.step():
            return ()
        n_tokens = min(self._n_draft_max(sequence), sequence.n_answer_max - sequence.n_answer - 1)
        tokens = drafting.ngrams.follow(n_tokens)
        end = next((place for place, token in enumerate(tokens) if token in self._end_tokens), len(tokens))
        return tuple(tokens[:end])

    def verified(self, part: BatchPart, n_accepted: int) -> None:
        """Note that the first ``n_accepted`` drafted tokens of a part were accepted."""
        self.n_drafted += len(part.draft)
        self.n_accepted += n_accepted
        if part.draft and part.sequence in self._drafting:
            self._drafting[part.sequence].acceptance.verified(len(part.draft), n_accepted)

    def observe(self, batch: Row[BatchPart], elapsed_ms: float) -> None:
        """Learn what a batch cost, unless it read prompts."""
        if self._drafting and all(part.sequence.state is State.DECODE for part in batch):
            self._costs.observe(sum(part.width for part in batch), elapsed_ms)
