"""What followed the last tokens before is found at once, wherever it stood."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runtime.engine.lookup.ngrams import N, Ngrams


def test_a_passage_that_begins_again_is_continued() -> None:
    """Three tokens that stood in the prompt bring those that followed them there."""
    tokens = [1, 2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4]
    assert Ngrams(tokens).follow(3) == [5, 6, 7]


def test_new_tokens_bring_nothing() -> None:
    """Two equal tokens are not enough, and a text shorter than a run has no runs."""
    assert Ngrams([1, 2, 3, 4, 5, 2, 3]).follow(4) == []
    assert Ngrams([1, 2]).follow(4) == []
    assert Ngrams([]).follow(4) == []
    assert Ngrams([1, 2, 3, 1, 2, 3]).follow(0) == []


def test_the_last_occurrence_counts() -> None:
    """Of two passages that begin alike the later one is followed."""
    assert Ngrams([1, 2, 3, 4, 1, 2, 3, 5, 9, 1, 2, 3]).follow(2) == [5, 9]


def test_a_circle_goes_on() -> None:
    """A text that repeats itself is continued beyond its own end, with its own period."""
    assert Ngrams([9, 1, 2, 3, 1, 2, 3, 1, 2]).follow(7) == [3, 1, 2, 3, 1, 2, 3]


def test_a_passage_that_is_followed_is_not_left_for_a_later_one() -> None:
    """While the answer copies a passage, a run of it that occurs again later does not lead away from it."""
    tokens = [1, 2, 3, 7, 8, 9, 4, 0, 7, 8, 9, 5, 0, 1, 2, 3]
    ngrams = Ngrams(tokens)
    assert ngrams.follow(2) == [7, 8]
    tokens += [7, 8, 9]
    assert ngrams.follow(1) == [4]
    tokens += [6, 7, 8, 9]
    assert ngrams.follow(1) == [6], "once the passage is left, the last occurrence counts again"


def test_a_guess_is_followed_from_the_first_token_of_the_answer() -> None:
    """The guess continues the prompt: its first token is found after the prompt's last two."""
    tokens = [1, 2, 3]
    ngrams = Ngrams(tokens, guess=[50, 51, 52, 53])
    tokens.append(50)
    assert ngrams.follow(9) == [51, 52, 53], "nothing is known of what follows the guess"
    tokens += [51, 99, 3, 51, 52, 53]
    assert ngrams.follow(9) == [], "the guess is at its end"


def test_a_guess_goes_before_the_prompt() -> None:
    """Where prompt and guess hold the same run, the guess is followed."""
    tokens = [7, 8, 9, 1, 5, 7, 8, 9]
    assert Ngrams(tokens, guess=[7, 8, 9, 2]).follow(1) == [2]


@given(st.lists(st.integers(0, 2), max_size=60), st.integers(0, 60), st.integers(1, 20))
def test_a_draft_follows_an_equal_run(tokens: list[int], n_first: int, n_tokens: int) -> None:
    """Whatever the tokens, and however many come at once: a draft begins with what followed an equal run."""
    text = tokens[:n_first]
    ngrams = Ngrams(text)
    ngrams.follow(n_tokens)
    text += tokens[n_first:]
    draft = ngrams.follow(n_tokens)
    places = [place for place in range(N, len(text)) if text[place - N : place] == text[-N:]]
    assert len(draft) == (n_tokens if places else 0)
    if places:
        assert draft[0] in {text[place] for place in places}
