"""Draws are llama.cpp's own, token for token."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import llama_cpp.llama_cpp as native
import numpy as np
import numpy.typing as npt
import pytest

from runtime.generation import Sampling
from runtime.llama.draw import Draw, make_scratch
from runtime.llama.library import Library

_CANDIDATE = np.dtype([("token", np.int32), ("logit", np.float32), ("probability", np.float32)])


@contextmanager
def chain_of(sampling: Sampling, seed: int) -> Iterator[object]:
    """llama.cpp's samplers of temperature, of the filters, and of the draw."""
    chain = native.llama_sampler_chain_init(native.llama_sampler_chain_default_params())
    native.llama_sampler_chain_add(chain, native.llama_sampler_init_temp(sampling.temperature))
    if sampling.top_k:
        native.llama_sampler_chain_add(chain, native.llama_sampler_init_top_k(sampling.top_k))
    native.llama_sampler_chain_add(chain, native.llama_sampler_init_top_p(sampling.top_p, 1))
    native.llama_sampler_chain_add(chain, native.llama_sampler_init_min_p(sampling.min_p, 1))
    native.llama_sampler_chain_add(chain, native.llama_sampler_init_dist(seed))
    yield chain
    native.llama_sampler_free(chain)


def chosen(chain: object, logits: npt.NDArray[np.float32]) -> int:
    """The chain's choice."""
    candidates = np.zeros(len(logits), _CANDIDATE)
    candidates["token"], candidates["logit"] = np.arange(len(logits)), logits
    data = candidates.ctypes.data_as(native.llama_token_data_p)
    array = native.llama_token_data_array(data=data, size=len(logits), selected=-1, sorted=False)
    native.llama_sampler_apply(chain, ctypes.byref(array))
    return int(array.data[array.selected].id)


FILTERS: list[dict[str, Any]] = [
    {},
    {"top_k": 1},
    {"top_k": 40},
    {"top_k": 3000},
    {"top_p": 0.5},
    {"top_p": 0.95},
    {"top_p": 0.9999},
    {"min_p": 0.05},
    {"top_k": 40, "top_p": 0.9},
    {"top_p": 0.9, "min_p": 0.1},
    {"top_k": 50, "top_p": 0.95, "min_p": 0.02},
]


@pytest.mark.parametrize("filters", FILTERS, ids=str)
@pytest.mark.parametrize("n_vocab", [1, 1000, 1024, 2500, 20_000])
@pytest.mark.parametrize("seed", [0, 2**32 - 2])
def test_draws_are_llama_cpps(library: Library, n_vocab: int, seed: int, filters: dict[str, Any]) -> None:
    """Draws at three temperatures, from flat and from steep logits, are those of the chain with the same seed.

    Under ``top_p`` steep ones alone: llama.cpp sums up thousands of probabilities in float32, and cuts flat ones some
    tokens off.
    """
    del library
    spreads = (48,) if "top_p" in filters and "top_k" not in filters else (1, 4, 12)
    generator = np.random.default_rng(n_vocab)
    for temperature in (0.3, 1.0, 4.0):
        sampling = Sampling(temperature=temperature, **filters)
        draw, scratch = Draw(sampling, seed), make_scratch(n_vocab)
        with chain_of(sampling, seed) as chain:
            for spread in spreads:
                logits = (spread * generator.normal(size=n_vocab)).astype(np.float32)
                kept = logits.copy()
                assert [draw.take(logits, scratch) for _ in range(100)] == [chosen(chain, logits) for _ in range(100)]
                assert np.array_equal(logits, kept)


@pytest.mark.parametrize("spread", [0.1, 1, 4])
@pytest.mark.parametrize("top_p", [0.0, 0.3, 0.95, 0.9999])
def test_top_p_cuts_where_the_likeliest_make_it_up(top_p: float, spread: float) -> None:
    """However flat the logits are, what is drawn are the fewest tokens whose probabilities sum up to ``top_p``."""
    logits = (spread * np.random.default_rng(1).normal(size=9000)).astype(np.float32)
    order = np.argsort(-logits)
    odds = np.exp(logits[order].astype(np.float64))
    n_kept = int(np.searchsorted(odds.cumsum() / odds.sum(), top_p)) + 1
    draw, scratch = Draw(Sampling(temperature=1.0, top_p=top_p), 1), make_scratch(9000)
    drawn = {draw.take(logits, scratch) for _ in range(3000)}
    places = {int(place) for place in np.flatnonzero(np.isin(order, list(drawn)))}
    assert max(places) < n_kept
    assert len(drawn) > min(n_kept, 100) // 2


def test_a_forbidden_token_is_never_drawn() -> None:
    """A logit of minus infinity has no probability, at the first and the last place too."""
    logits = np.zeros(3000, np.float32)
    logits[[0, 1500, 2999]] = -np.inf
    draw, scratch = Draw(Sampling(temperature=1.0), 1), make_scratch(3000)
    assert not {draw.take(logits, scratch) for _ in range(5000)} & {0, 1500, 2999}
