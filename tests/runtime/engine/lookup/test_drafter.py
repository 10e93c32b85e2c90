"""Which parts of a batch get drafts, and how long these are; without a model."""

from __future__ import annotations

import dataclasses

import pytest

from runtime.engine.lookup.drafter import Drafter
from runtime.engine.scheduler import BatchPart, EngineLimits
from runtime.engine.sequence import Sequence, State
from tests.runtime.engine.values import request

LIMITS = EngineLimits(n_ctx=500, n_kv_cells=1000, n_parallel=4, n_batch=64, step_budget_ms=250, n_draft_max=16)
END = 99
CIRCLE = [1, 2, 3, 4, 5] * 4


def answering(
    tokens: list[int], *, max_tokens: int = 100, n_draft_max: int | None = None, state: State = State.DECODE
) -> Sequence:
    """Return a sequence whose last token is the first of its answer."""
    asked = dataclasses.replace(request(max_tokens=max_tokens), n_draft_max=n_draft_max)
    sequence = Sequence(asked, tokens[:-1], LIMITS.n_ctx)
    sequence.move(State.PREFILL)
    if state is State.DECODE:
        sequence.n_computed = sequence.n_prompt
        sequence.tokens.append(tokens[-1])
        sequence.move(State.DECODE)
    return sequence


def drafts_of(*sequences: Sequence, limits: EngineLimits = LIMITS) -> list[tuple[int, ...]]:
    """Return the drafts of a batch of these sequences, on a machine where wider steps cost nothing more."""
    drafter = Drafter(limits, {END})
    for one in sequences:
        drafter.begin(one)
    batch = [BatchPart(one, 1) for one in sequences]
    for _ in range(4):
        drafter.observe([part for part in batch if part.sequence.state is State.DECODE], 100.0)
    if wide := [part for part in batch if part.sequence.state is State.DECODE]:
        free = dataclasses.replace(wide[0], draft=tuple(range(60)))
        for _ in range(4):
            drafter.observe([free], 100.0)
    return [part.draft for part in drafter.extend(batch)]


def test_what_repeats_itself_is_drafted() -> None:
    """The draft goes on as the sequence did, in whole groups with the token that has to be computed."""
    assert drafts_of(answering(CIRCLE)) == [(1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1, 2, 3, 4, 5)]
    assert drafts_of(answering(list(range(20)))) == [()]


def test_nothing_is_drafted_beside_a_prompt() -> None:
    """A step that reads a prompt gives its time to the prompt."""
    assert drafts_of(answering(CIRCLE), answering(CIRCLE, state=State.PREFILL)) == [(), ()]


@pytest.mark.parametrize(("wanted", "n_drafted"), [(0, 0), (1, 0), (3, 3), (6, 3), (7, 7), (1000, 15)])
def test_a_request_may_ask_for_less(wanted: int, n_drafted: int) -> None:
    """The request's own limit counts within the server's."""
    assert [len(draft) for draft in drafts_of(answering(CIRCLE, n_draft_max=wanted))] == [n_drafted]


def test_a_server_may_allow_none() -> None:
    """With a limit of 0 no request drafts."""
    assert drafts_of(answering(CIRCLE, n_draft_max=9), limits=dataclasses.replace(LIMITS, n_draft_max=0)) == [()]


@pytest.mark.parametrize(("max_tokens", "n_drafted"), [(1, 0), (4, 0), (5, 3), (8, 3), (9, 7)])
def test_a_draft_leaves_room_for_the_token_after_it(max_tokens: int, n_drafted: int) -> None:
    """One token of the answer is there, and one is chosen after the draft: both count."""
    sequence = answering(CIRCLE, max_tokens=max_tokens)
    (draft,) = drafts_of(sequence)
    assert len(draft) == n_drafted
    assert sequence.n_computed + 1 + len(draft) <= max(sequence.n_cells_max, sequence.n_computed + 1)


@pytest.mark.parametrize(("n_equal", "n_drafted"), [(3, 0), (6, 0), (12, 3)])
def test_a_long_agreement_is_worth_a_dear_draft(n_equal: int, n_drafted: int) -> None:
    """Where four tokens take three times as long as one, the first draft waits until many tokens agree."""
    passage = list(range(20))
    sequence = answering([*passage, *passage[15 - n_equal : 15]])
    drafter = Drafter(LIMITS, {END})
    drafter.begin(sequence)
    part = BatchPart(sequence, 1)
    for _ in range(4):
        for width, elapsed_ms in ((1, 100.0), (4, 300.0), (8, 600.0), (12, 900.0), (16, 1200.0)):
            drafter.observe([dataclasses.replace(part, draft=tuple(range(width - 1)))], elapsed_ms)
    (extended,) = drafter.extend([part])
    assert extended.draft == (15, 16, 17)[:n_drafted]


def test_nothing_is_drafted_from_an_end_on() -> None:
    """A draft ends before a token that ends answers."""
    tokens = [1, 2, 3, 4, 5, 6, END, 8, 9, 10, 1, 2, 3]
    assert drafts_of(answering(tokens)) == [(4, 5, 6)]


def test_the_batch_and_the_logits_have_room() -> None:
    """Together the drafts keep to the batch's tokens and to the tokens whose logits can be had."""
    four = [answering([*range(one, one + 50), one, one + 1, one + 2]) for one in (100, 200, 300, 400)]
    assert sum(map(len, drafts_of(*four))) == 32
    assert sum(map(len, drafts_of(*four, limits=dataclasses.replace(LIMITS, n_batch=24)))) == 20


def test_the_counts_are_those_of_all_sequences() -> None:
    """Drafted and accepted tokens are counted since the start, also of sequences that have ended."""
    drafter = Drafter(LIMITS, {END})
    one, other = answering(CIRCLE), answering(CIRCLE)
    drafter.begin(one)
    drafter.verified(BatchPart(one, 1, (1, 2, 3)), 2)
    drafter.end(one)
    drafter.verified(BatchPart(other, 1, (1, 2, 3)), 3)
    assert (drafter.n_drafted, drafter.n_accepted) == (6, 5)
