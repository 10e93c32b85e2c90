"""Draws are llama.cpp's own, token for token."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import llama_cpp.llama_cpp as native
import numpy as np
import numpy.typing as npt
import pytest

from runtime.llama.draw import Draw, make_scratch
from runtime.llama.library import Library

_CANDIDATE = np.dtype([("token", np.int32), ("logit", np.float32), ("probability", np.float32)])


@contextmanager
def chain_of(temperature: float, seed: int) -> Iterator[object]:
    """llama.cpp's samplers of temperature and of the draw."""
    chain = native.llama_sampler_chain_init(native.llama_sampler_chain_default_params())
    native.llama_sampler_chain_add(chain, native.llama_sampler_init_temp(temperature))
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


@pytest.mark.parametrize("n_vocab", [1, 1000, 1024, 2500])
@pytest.mark.parametrize("seed", [0, 7, 2**32 - 2])
def test_draws_are_llama_cpps(library: Library, n_vocab: int, seed: int) -> None:
    """900 draws at three temperatures, from flat and from steep logits, are those of the chain with the same seed."""
    del library
    generator = np.random.default_rng(n_vocab)
    for temperature in (0.3, 1.0, 4.0):
        draw, scratch = Draw(temperature, seed), make_scratch(n_vocab)
        with chain_of(temperature, seed) as chain:
            for spread in (1, 4, 12):
                logits = (spread * generator.normal(size=n_vocab)).astype(np.float32)
                kept = logits.copy()
                assert [draw.take(logits, scratch) for _ in range(100)] == [chosen(chain, logits) for _ in range(100)]
                assert np.array_equal(logits, kept)


def test_a_forbidden_token_is_never_drawn() -> None:
    """A logit of minus infinity has no probability, at the first and the last place too."""
    logits = np.zeros(3000, np.float32)
    logits[[0, 1500, 2999]] = -np.inf
    draw, scratch = Draw(1.0, 1), make_scratch(3000)
    assert not {draw.take(logits, scratch) for _ in range(5000)} & {0, 1500, 2999}
