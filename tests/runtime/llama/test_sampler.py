"""Each parameter acts, and its edges are what Sampling says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.generation import Dry, Sampling, TokenBias
from runtime.llama import sampler as sampler_module
from runtime.llama.context import Chunk, Context
from runtime.llama.model import Model
from runtime.llama.sampler import Sampler, fold_seed
from tests.runtime.llama.conftest import SHAPE, Logits, tokens_of

PROMPT = tokens_of("sampler", 12)


@pytest.fixture(scope="module")
def context(model: Model) -> Iterator[Context]:
    """A context whose row 0 holds logits."""
    context = Context(model, SHAPE)
    context.decode([Chunk(0, PROMPT, 0, wants_logits=False)])
    context.decode([Chunk(0, [5], len(PROMPT), wants_logits=True)])
    yield context
    context.free()


def draw(context: Context, n: int = 1, prompt: list[int] | None = None, **sampling: Any) -> list[int]:
    """``n`` tokens from the same logits, one sampler for all."""
    sampler = Sampler(Sampling(**sampling), prompt or [], context)
    tokens = [sampler.sample(0) for _ in range(n)]
    sampler.free()
    return tokens


def ranking(logits: Logits) -> list[int]:
    """Tokens from the most likely to the least."""
    return [int(token) for token in np.argsort(-logits, kind="stable")]


@given(st.integers(0, 2**63 - 1))
def test_every_seed_becomes_one_that_repeats(seed: int) -> None:
    """32 bits, never llama.cpp's own sign for a random one; small seeds stay."""
    folded = fold_seed(seed)
    assert 0 <= folded < 2**32 - 1
    assert folded == fold_seed(seed)
    assert seed >= 2**32 - 1 or folded == seed


def test_seeds_beyond_32_bits_differ() -> None:
    """Seeds that differ only in their upper 32 bits give different draws."""
    assert len({fold_seed(seed) for seed in (1, 1 + 2**32, 1 + 2**33, 2**32 - 1)}) == 4
    assert len({fold_seed(None) for _ in range(4)}) > 1


def test_temperature_zero_is_the_most_likely(context: Context) -> None:
    """Temperature 0 gives the most likely token, whatever the filters and the seed are."""
    best = ranking(context.logits(0))[0]
    assert draw(context, temperature=0) == [best]
    assert draw(context, temperature=0, top_k=50, top_p=0.1, seed=3) == [best]
    assert draw(context, temperature=1e-40) == [best]


def test_a_seed_repeats_and_none_does_not(context: Context) -> None:
    """The same seed gives the same tokens; another seed and no seed give others."""
    assert draw(context, 20, temperature=3, seed=7) == draw(context, 20, temperature=3, seed=7)
    assert draw(context, 20, temperature=3, seed=7) != draw(context, 20, temperature=3, seed=8)
    assert draw(context, 20, temperature=3) != draw(context, 20, temperature=3)


def test_frequencies_are_those_of_the_softmax(context: Context) -> None:
    """5,000 draws at temperature 2 against the distribution: the likeliest five, within five standard deviations."""
    logits = context.logits(0).astype(float) / 2
    odds = np.exp(logits - logits.max())
    odds /= odds.sum()
    n = 5000
    found = Counter(draw(context, n, temperature=2, seed=1))
    for token in ranking(context.logits(0))[:5]:
        assert abs(found[token] - n * odds[token]) < 5 * np.sqrt(n * odds[token])


@pytest.mark.parametrize("top_k", [1, 3])
def test_top_k_keeps_so_many(context: Context, top_k: int) -> None:
    """The k likeliest tokens are kept at any temperature; 0 keeps all."""
    best = ranking(context.logits(0))
    assert set(draw(context, 300, temperature=5, top_k=top_k, seed=1)) == set(best[:top_k])
    assert len(set(draw(context, 300, temperature=5, top_k=0, seed=1))) > 50


def test_top_p_keeps_the_likeliest(context: Context) -> None:
    """0 keeps one token, a part those that make it up at this temperature, 1 and more keep all."""
    logits = context.logits(0).astype(float) / 2
    odds = np.sort(np.exp(logits - logits.max()))[::-1]
    n_kept = int(np.searchsorted(np.cumsum(odds / odds.sum()), 0.5)) + 1
    best = ranking(context.logits(0))
    assert set(draw(context, 50, temperature=2, top_p=0, seed=1)) == {best[0]}
    assert set(draw(context, 3000, temperature=2, top_p=0.5, seed=1)) <= set(best[:n_kept])
    assert draw(context, 50, temperature=2, top_p=1, seed=1) == draw(context, 50, temperature=2, top_p=2, seed=1)


def test_repetition_counts_prompt_and_answer(context: Context) -> None:
    """A likely token of the prompt goes down; 0 and 1 are off; below 1 it goes up."""
    best = ranking(context.logits(0))
    assert context.logits(0)[best[0]] > 0
    assert draw(context, prompt=[best[0]], temperature=0, repetition_penalty=2.0) != [best[0]]
    for off in (0.0, 1.0):
        assert draw(context, prompt=[best[0]], temperature=0, repetition_penalty=off) == [best[0]]
    assert draw(context, 2, temperature=0, repetition_penalty=2.0)[1] != best[0]


@pytest.mark.parametrize("penalty", ["frequency_penalty", "presence_penalty"])
def test_the_other_penalties_count_the_answer_alone(context: Context, penalty: str) -> None:
    """The prompt's tokens are free; an answer's own are not."""
    logits = context.logits(0)
    best = ranking(logits)
    settings: dict[str, Any] = {"temperature": 0.0, penalty: 2.0}
    assert draw(context, prompt=[best[0]] * 9, **settings)[0] == best[0]
    repeated = draw(context, 6, **settings)
    assert repeated[0] == best[0]
    assert len(set(repeated)) > 1 or logits[best[0]] - logits[best[1]] > 2 * 6


def test_frequency_grows_with_the_count_and_presence_does_not(context: Context) -> None:
    """Drawn again and again: the one comes round, the other stays with its first few."""
    n_frequency = len(set(draw(context, 60, temperature=0, frequency_penalty=2.0)))
    n_presence = len(set(draw(context, 60, temperature=0, presence_penalty=2.0)))
    assert n_frequency > n_presence


def test_min_p_keeps_what_is_likely_enough(context: Context) -> None:
    """A token stays if its probability is at least that share of the likeliest one's."""
    logits = context.logits(0).astype(float)
    kept = {int(token) for token in np.flatnonzero(logits >= logits.max() + np.log(0.05))}
    assert set(draw(context, 500, temperature=1, min_p=0.05)) <= kept
    assert set(draw(context, 20, temperature=1, min_p=1)) == {ranking(context.logits(0))[0]}


def test_typical_p_narrows_the_choice(context: Context) -> None:
    """A small share of the probability mass leaves few tokens."""
    assert len(set(draw(context, 200, temperature=3, typical_p=0.05))) < len(set(draw(context, 200, temperature=3)))


def test_xtc_leaves_out_the_likeliest(context: Context) -> None:
    """With probability 1 every token above the threshold but the least likely of them is never chosen."""
    logits = context.logits(0).astype(float) / 3
    odds = np.exp(logits - logits.max())
    above = [int(token) for token in np.flatnonzero(odds / odds.sum() > 0.001)]
    assert len(above) > 2
    best = ranking(context.logits(0))[0]
    assert best not in draw(context, 300, temperature=3, xtc_probability=1, xtc_threshold=0.001)


def test_a_bias_moves_a_token(context: Context) -> None:
    """-100 forbids the likeliest token and 100 forces another, also when greedy."""
    first, second, *_ = ranking(context.logits(0))
    assert draw(context, temperature=0, biases=(TokenBias(first, -100),)) == [second]
    assert draw(context, temperature=0, biases=(TokenBias(7, 100),)) == [7]


@pytest.mark.parametrize("filters", [{}, {"top_k": 9}, {"top_p": 0.9}, {"top_k": 40, "min_p": 0.1}])
@pytest.mark.parametrize("ignores_end", [False, True])
def test_choices_are_those_of_the_chain(
    context: Context, monkeypatch: pytest.MonkeyPatch, filters: dict[str, Any], *, ignores_end: bool
) -> None:
    """What numpy chooses is what llama.cpp's chain does, under biases too; logits stay as they are."""
    first = ranking(context.logits(0))[0]
    biases = (TokenBias(first, -3.5), TokenBias(7, 11.0))
    settings: dict[str, Any] = {"temperature": 2.5, "seed": 4, "biases": biases, "ignores_end": ignores_end} | filters
    before = context.logits(0)
    by_numpy = draw(context, 50, **settings)
    monkeypatch.setattr(sampler_module, "can_draw", lambda _: False)
    assert draw(context, 50, **settings) == by_numpy
    assert np.array_equal(context.logits(0), before)


def test_an_ignored_end_is_never_chosen(context: Context) -> None:
    """A token that ends an answer loses against every other one."""
    end = context.model.end_tokens[0]
    assert draw(context, temperature=0, biases=(TokenBias(end, 100),)) == [end]
    assert draw(context, temperature=0, biases=(TokenBias(end, 100),), ignores_end=True) != [end]


def test_a_window_forgets_what_is_older(context: Context) -> None:
    """A repetition penalty over the last token alone does not see the one before it."""
    best, second, *_ = ranking(context.logits(0))
    assert draw(context, prompt=[best, 3], temperature=0, repetition_penalty=2, repetition_window=1) == [best]
    assert draw(context, prompt=[best, 3], temperature=0, repetition_penalty=2, repetition_window=2) != [best]
    assert draw(context, prompt=[best], temperature=0, repetition_penalty=2, repetition_window=0) == [best]
    assert second != best


def test_dry_breaks_a_repeated_passage(context: Context) -> None:
    """The token that would go on with a passage seen before is penalised."""
    best = ranking(context.logits(0))[0]
    passage = [20, 21, 22, 23]
    prompt = [*passage, best, 9, *passage]
    assert draw(context, prompt=prompt, temperature=0) == [best]
    assert draw(context, prompt=prompt, temperature=0, dry=Dry(10.0, breakers=())) != [best]


class Only:
    """A filter that allows some tokens and remembers the tokens that were accepted."""

    def __init__(self, *tokens: int) -> None:
        self.tokens = np.array(sorted(tokens))
        self.accepted: list[int] = []
        self.n_listed = 0

    def allows(self, token: int) -> bool:
        return token in self.tokens

    def allowed(self) -> np.ndarray:
        self.n_listed += 1
        return self.tokens

    def accept(self, token: int) -> None:
        self.accepted.append(token)


def test_a_filter_decides_after_the_free_choice(context: Context) -> None:
    """All allowed tokens are listed only when the free choice is refused; the choice is reported once."""
    best, second, third, *_ = ranking(context.logits(0))
    fits, refuses = Only(best, third), Only(second, third)
    for token_filter, token, n_listed in ((fits, best, 0), (refuses, second, 1)):
        sampler = Sampler(Sampling(temperature=0), [], context, token_filter)
        assert sampler.sample(0) == token
        sampler.free()
        assert token_filter.accepted == [token]
        assert token_filter.n_listed == n_listed


def test_a_filter_keeps_the_odds(context: Context) -> None:
    """Choosing freely first changes no relative odds: 4,000 draws of two allowed tokens."""
    first, _, third, *_ = ranking(context.logits(0))
    logits = context.logits(0).astype(float)
    share = 1 / (1 + np.exp(logits[third] / 4 - logits[first] / 4))
    sampler = Sampler(Sampling(temperature=4, seed=5), [], context, Only(first, third))
    counts = Counter(sampler.sample(0) for _ in range(4000))
    sampler.free()
    assert set(counts) == {first, third}
    assert counts[first] / 4000 == pytest.approx(share, abs=5 * np.sqrt(share * (1 - share) / 4000))
