"""Which tokens run under a blend, as PEFT has it."""

from __future__ import annotations

import random

import pytest

from runtime.engine.coverage import BASE_COVERAGE, Coverage, cover
from runtime.generation import BASE
from tests.runtime.engine.values import blend

A, B = blend("a"), blend("b")


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ([5, 6, 1, 2, 3], Coverage(A, 2)),
        ([1, 2, 3], Coverage(A, 0)),
        ([1, 2, 3, 9, 1, 2, 3, 9], Coverage(A, 4)),
        ([1, 2, 1, 2, 3], Coverage(A, 2)),
        ([1, 2, 3, 1, 2], Coverage(A, 0)),
        ([1, 2], BASE_COVERAGE),
        ([9, 9, 9, 9], BASE_COVERAGE),
        ([1, 2, 9, 3], BASE_COVERAGE),
    ],
    ids=str,
)
def test_the_last_whole_invocation_sequence_counts(prompt: list[int], expected: Coverage) -> None:
    """The blend applies from the last whole match on; without a match the base model answers."""
    assert cover(A, (1, 2, 3), prompt) == expected


def test_a_match_is_one_of_tokens_and_not_of_bytes() -> None:
    """Bytes that equal the sequence across the borders of tokens do not match."""
    assert cover(A, (0x01000000,), [0x00000001, 0x00000000]) == BASE_COVERAGE
    assert cover(A, (0,), [0x00000100, 0x00010000]) == BASE_COVERAGE
    assert cover(A, (0x100,), [0x100, 0x10000, 0x1]) == Coverage(A, 0)


def test_matches_are_those_of_a_plain_search() -> None:
    """A thousand random prompts over two tokens, against a search token by token."""
    chance = random.Random(3)
    for _ in range(1000):
        prompt = [chance.randrange(2) for _ in range(chance.randrange(1, 30))]
        wanted = [chance.randrange(2) for _ in range(chance.randrange(1, 6))]
        places = [n for n in range(len(prompt)) if prompt[n : n + len(wanted)] == wanted]
        assert cover(A, wanted, prompt) == (Coverage(A, places[-1]) if places else BASE_COVERAGE)


def test_a_plain_lora_covers_every_token() -> None:
    """A blend without an invocation sequence applies from the first token on."""
    assert cover(A, (), [4, 5, 6]) == Coverage(A, 0)


def test_tokens_before_the_start_run_under_the_base_model() -> None:
    """The token at the start is the first one under the blend."""
    assert [Coverage(A, 2).blend_at(position) for position in range(4)] == [BASE, BASE, A, A]
    assert BASE_COVERAGE.blend_at(0) == BASE


@pytest.mark.parametrize(
    ("one", "other", "n_shared"),
    [
        (Coverage(A, 5), Coverage(B, 9), 5),
        (Coverage(A, 5), Coverage(A, 9), 5),
        (Coverage(A, 5), BASE_COVERAGE, 5),
        (Coverage(A), BASE_COVERAGE, 0),
        (Coverage(A), Coverage(A, 9), 0),
        (Coverage(A), Coverage(B), 0),
    ],
    ids=str,
)
def test_coverages_share_the_tokens_that_run_alike_in_both(one: Coverage, other: Coverage, n_shared: int) -> None:
    """That many leading tokens have one blend in both, whichever is asked first."""
    assert one.n_shared(other) == other.n_shared(one) == n_shared
    assert [one.blend_at(n) == other.blend_at(n) for n in range(n_shared + 1)] == [True] * n_shared + [False]


def test_equal_coverages_share_every_token() -> None:
    """No position is too far; the base model's coverage has one form only."""
    for one in (Coverage(A), Coverage(A, 7), BASE_COVERAGE):
        assert one.n_shared(one) > 1 << 40
    assert Coverage(BASE, 7) == BASE_COVERAGE


def test_a_prefix_before_the_start_is_the_base_models() -> None:
    """A prefix that ends before the blend starts can be used by everybody."""
    assert Coverage(A, 7).of_first(7) == BASE_COVERAGE
    assert Coverage(A, 7).of_first(8) == Coverage(A, 7)
    assert Coverage(A).of_first(1) == Coverage(A)


def test_a_negative_start_is_refused() -> None:
    """No token stands before the first."""
    with pytest.raises(ValueError, match="negative"):
        Coverage(A, -1)
