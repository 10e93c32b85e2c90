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
    """Where a run stands in the guess and in the prompt after tokens that are as many and equal, the guess counts."""
    tokens = [7, 8, 9, 1, 5, 7, 8, 9]
    assert Ngrams(tokens, guess=[7, 8, 9, 2]).follow(1) == [2]


def test_the_longer_agreement_goes_before_the_guess() -> None:
    """Where more tokens before a run agree in the sequence than in the guess, the sequence is followed."""
    tokens = [6, 7, 8, 9, 1, 5, 6, 7, 8, 9]
    assert Ngrams(tokens, guess=[0, 7, 8, 9, 2]).follow(1) == [1]
    assert Ngrams(tokens, guess=[6, 7, 8, 9, 2]).follow(1) == [2]


def test_a_circle_is_not_left_for_a_guess_with_changes() -> None:
    """An answer of 20 circles takes few drafts, though every twelfth token of its guess is another one."""
    answer = [*range(11)] * 20
    guess = [900 + place if place % 12 == 11 else token for place, token in enumerate(answer)]
    tokens = [90, 91]
    ngrams = Ngrams(tokens, guess)
    n_steps = 0
    while (n_left := len(answer) - len(tokens) + 2) > 0:
        draft = ngrams.follow(15)
        coming = [*answer[-n_left:], -1]
        n_right = next((place for place, token in enumerate(draft) if token != coming[place]), len(draft))
        tokens += coming[: min(n_right + 1, n_left)]
        n_steps += 1
    assert tokens[2:] == answer
    assert n_steps < 30, "14 steps of 16 tokens, and some to begin with"


def test_a_guess_that_repeats_itself_is_read_from_its_start() -> None:
    """Of the places in the guess where a run stands the first one is followed: after the last one little is left."""
    tokens = [90, 91]
    ngrams = Ngrams(tokens, guess=[1, 2, 3, 4] * 3)
    tokens += [1, 2, 3]
    assert ngrams.follow(9) == [4, 1, 2, 3, 4, 1, 2, 3, 4]


def test_a_guess_is_read_on_after_a_token_that_differs() -> None:
    """A run that stands in the guess again and again is found after the place the answer has come to."""
    tokens = [90, 91]
    guess = [1, 2, 3, 4, 1, 2, 80, 4, 1, 2, 3, 4, 1, 2, 81, 4]
    ngrams = Ngrams(tokens, guess)
    tokens.append(1)
    assert ngrams.follow(20) == guess[1:], "before the answer differs"
    tokens += [2, 3, 4, 1, 2, 3]
    assert ngrams.follow(20) == guess[11:], "3 came instead of 80: the next 1, 2, 3 counts, not the one before"
    tokens += [4, 1, 2, 3]
    assert ngrams.follow(3) == [4, 1, 2], "3 came instead of 81, the last of the guess: it is read from its start again"


def test_an_exchanged_token_leads_back_to_the_same_passage() -> None:
    """Once three tokens agree again, the guess is followed at its own pace, not where the three stand first."""
    tokens = [90, 91]
    ngrams = Ngrams(tokens, guess=[5, 6, 7, 80, 5, 6, 7, 8, 9])
    tokens.append(5)
    assert ngrams.follow(3) == [6, 7, 80]
    tokens += [6, 7, 81, 5, 6, 7]
    assert ngrams.follow(9) == [8, 9]


def test_the_sequence_goes_on_where_the_guess_ends() -> None:
    """A draft that the guess cannot fill is filled from the sequence, by the last three tokens of the draft."""
    tokens = [1, 2, 3, 4, 5, 6, 7, 60]
    ngrams = Ngrams(tokens, guess=[61, 62, 1, 2, 3])
    tokens += [61, 62]
    assert ngrams.follow(2) == [1, 2]
    assert ngrams.follow(8) == [1, 2, 3, 4, 5, 6, 7, 60]
    assert ngrams.follow(12)[8:] == [61, 62, 1, 2], "the sequence goes on with the draft"
    tokens += [1, 2, 3]
    assert ngrams.follow(3) == [4, 5, 6], "at the end of the guess the sequence alone is followed"


def test_the_sequence_is_followed_where_the_guess_does_not_know_it() -> None:
    """A text in a circle is drafted beside a guess of something else."""
    tokens = [1, 2, 3, 1, 2, 3]
    assert Ngrams(tokens, guess=[7, 8, 9, 10]).follow(5) == [1, 2, 3, 1, 2]


def test_agreement_is_counted_beyond_the_run() -> None:
    """Tokens before the three that have to be equal, in the passage that is followed, as far as they agree too."""
    passage = list(range(10, 40))
    for n, expected in ((3, 0), (4, 1), (9, 6), (16, 13), (25, 13)):
        ngrams = Ngrams([*passage, 0, *passage[25 - n : 25]])
        assert ngrams.follow(2) == passage[25:27]
        assert ngrams.n_more_equal == expected
    new = Ngrams([1, 2, 3, 4, 5])
    assert (new.follow(2), new.n_more_equal) == ([], 0)


def windows(tokens: list[int]) -> set[tuple[int, ...]]:
    """Return each run of a list with the token that follows it."""
    return {tuple(tokens[end - N : end + 1]) for end in range(N, len(tokens))}


@given(
    st.lists(st.integers(0, 2), max_size=30),
    st.lists(st.integers(0, 2), max_size=30),
    st.lists(st.lists(st.integers(0, 2), max_size=8), max_size=6),
    st.integers(1, 20),
)
def test_a_draft_with_a_guess_follows_an_equal_run(
    prompt: list[int], guess: list[int], steps: list[list[int]], n_tokens: int
) -> None:
    """Each token of a draft has followed the three before it, in the sequence, in the draft or in the guess."""
    text = list(prompt)
    ngrams = Ngrams(text, guess)
    in_guess = windows([*prompt[-(N - 1) :], *guess])
    for new in steps:
        text += new
        draft = ngrams.follow(n_tokens)
        assert len(draft) <= n_tokens
        whole = text + draft
        for end in range(len(text), len(whole)):
            assert tuple(whole[end - N : end + 1]) in in_guess | windows(whole[:end])


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
