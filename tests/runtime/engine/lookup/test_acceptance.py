"""Drafts become longer while they are right, and rare while they are wrong."""

from __future__ import annotations

import pytest

from runtime.engine.lookup.acceptance import Acceptance


def n_drafts(acceptance: Acceptance, n_steps: int, n_accepted: int) -> int:
    """Draft three tokens wherever it is allowed; return how often it was."""
    n = 0
    for _ in range(n_steps):
        if acceptance.step():
            acceptance.verified(3, n_accepted)
            n += 1
    return n


def test_right_drafts_are_expected_to_go_on() -> None:
    """The estimate begins at a half and grows with each right draft."""
    acceptance = Acceptance()
    assert acceptance.probability() == 0.5
    seen = [0.5]
    for _ in range(5):
        assert acceptance.step()
        acceptance.verified(3, 3)
        seen.append(acceptance.probability())
    assert seen == sorted(set(seen))
    assert seen[-1] > 0.9


def test_wrong_drafts_become_rare() -> None:
    """256 steps of wrong drafts hold seven of them, and each further 256 steps one."""
    acceptance = Acceptance()
    assert n_drafts(acceptance, 256, n_accepted=0) == 7
    assert n_drafts(acceptance, 4 * 256, n_accepted=0) <= 5


def test_one_right_token_ends_the_pauses() -> None:
    """A draft that is right in part lets the next step draft at once."""
    acceptance = Acceptance()
    n_drafts(acceptance, 100, n_accepted=0)
    while not acceptance.step():
        pass
    acceptance.verified(3, 1)
    assert acceptance.step()
    acceptance.verified(3, 0)
    assert [acceptance.step() for _ in range(5)] == [False] * 3 + [True] * 2


def test_a_draft_that_does_not_pay_is_not_offered_at_once() -> None:
    """After a step that had no use for a draft, the fourth step may have one; the estimate stays."""
    acceptance = Acceptance()
    acceptance.refused()
    assert [acceptance.step() for _ in range(4)] == [False, False, False, True]
    assert acceptance.probability() == 0.5


def test_what_is_known_fades() -> None:
    """Three hundred steps without a draft bring the estimate back near a half."""
    acceptance = Acceptance()
    n_drafts(acceptance, 50, n_accepted=1)
    assert acceptance.probability() == pytest.approx(0.5, abs=0.01), "one right, one wrong each time"
    n_drafts(acceptance, 50, n_accepted=3)
    high = acceptance.probability()
    for _ in range(300):
        acceptance.step()
    assert high > 0.8 > 0.6 > acceptance.probability() > 0.5


def test_tokens_after_a_wrong_one_say_nothing() -> None:
    """One right and one wrong token count, whatever was drafted after them."""
    one, other = Acceptance(), Acceptance()
    one.verified(2, 1)
    other.verified(16, 1)
    assert one.probability() == other.probability() == 0.5


def test_agreement_counts_until_drafts_were_tried() -> None:
    """Tokens that agree before the first draft are as many accepted ones; later the drafts themselves tell more."""
    acceptance = Acceptance()
    assert [acceptance.probability(n) for n in (0, 1, 13)] == [1 / 2, 2 / 3, 14 / 15]
    acceptance.verified(3, 0)
    assert acceptance.probability(13) == pytest.approx(13 / 15), "one of 13 was tried, and rejected"
    acceptance.verified(30, 15)
    assert acceptance.probability(13) == acceptance.probability()
