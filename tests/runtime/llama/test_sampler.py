"""Each parameter acts, and its edges are what Sampling says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.generation import Sampling
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
    """The upper half counts."""
    assert len({fold_seed(seed) for seed in (1, 1 + 2**32, 1 + 2**33, 2**32 - 1)}) == 4
    assert len({fold_seed(None) for _ in range(4)}) > 1


def test_temperature_zero_is_the_most_likely(context: Context) -> None:
    """Whatever the filters and the seed say."""
    best = ranking(context.logits(0))[0]
    assert draw(context, temperature=0) == [best]
    assert draw(context, temperature=0, top_k=50, top_p=0.1, seed=3) == [best]
    assert draw(context, temperature=1e-40) == [best]


def test_a_seed_repeats_and_none_does_not(context: Context) -> None:
    """Same seed, same tokens."""
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
    """However hot; 0 keeps all."""
    best = ranking(context.logits(0))
    assert set(draw(context, 300, temperature=5, top_k=top_k, seed=1)) == set(best[:top_k])
    assert len(set(draw(context, 300, temperature=5, top_k=0, seed=1))) > 50


def test_top_p_keeps_the_likeliest(context: Context) -> None:
    """0 keeps one; a small part keeps those that make it up at this temperature; 1 and more keep all."""
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
