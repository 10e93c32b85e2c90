"""Logprobs from logits."""

import numpy as np
import pytest

from runtime.llama.scores import score

LOGITS = np.array([1.0, 3.0, -2.0, 3.0, 0.5], np.float32)


def test_logprobs_are_those_of_the_softmax() -> None:
    """The probabilities of all tokens add up to one, and each is the softmax's."""
    every = [score(LOGITS, token, 0).logprob for token in range(len(LOGITS))]
    assert sum(map(np.exp, every)) == pytest.approx(1, abs=1e-12)
    expected = LOGITS.astype(float) - np.log(np.exp(LOGITS.astype(float)).sum())
    assert every == pytest.approx(list(expected), abs=1e-12)


def test_the_likeliest_come_first_and_equals_by_their_number() -> None:
    """As many alternatives come as were asked for or exist; the chosen token's value is among them, bit for bit."""
    assert [token for token, _ in score(LOGITS, 0, 3).likeliest] == [1, 3, 0]
    assert len(score(LOGITS, 0, 20).likeliest) == len(LOGITS)
    found = score(LOGITS, 3, 2)
    assert dict(found.likeliest)[3] == found.logprob


def test_large_logits_do_not_overflow() -> None:
    """The largest logits that a float32 holds give finite logprobs."""
    assert score(np.array([3e38, -3e38], np.float32), 0, 1).logprob == 0
