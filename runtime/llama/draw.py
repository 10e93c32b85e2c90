"""A draw from the likeliest tokens, or from all: those that llama.cpp's own samplers draw with the same seed.

llama.cpp first copies each of the 256,000 logits into a struct and calls ``expf`` one by one: 1.9 ms for each token,
and 16 ms where ``top_p`` then sorts them. numpy takes 0.4 and 0.6 ms, and 8 to 16 ms only where logits are so flat
that 100,000 tokens make up ``top_p``. Its ``exp`` may differ from ``expf`` in the last bit, so that one draw in some
ten million may come out as the neighbouring token.

Source: llama.cpp src/llama-sampler.cpp, ``llama_sampler_top_k_impl``, ``llama_sampler_top_p_apply``,
``llama_sampler_min_p_apply`` and ``llama_sampler_dist_apply`` (the first token at which the sum of probabilities
reaches a uniform number); C++ standard, ``std::mt19937`` and ``std::generate_canonical`` (that number is made of two
outputs of 32 bits, the lower first).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from runtime.generation import Sampling

_UNIT = float(1 << 64)
_BELOW_ONE = math.nextafter(1.0, 0.0)
# Probabilities are summed in blocks of this many, and one by one only within the block that holds the token.
_BLOCK = 1024

# Logits are dealt to this many groups; the k-th largest of the groups' maxima is a floor that k logits reach.
_N_GROUPS = 2048
# Of the likeliest token's odds: tokens below a floor are left out of sorting where those above it make up ``top_p``.
_FLOORS = (1e-2, 1e-4, 1e-6, 0.0)

Scratch = npt.NDArray[np.float32]
Logits = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.intp]


def make_scratch(n_vocab: int) -> Scratch:
    """Memory for one draw at a time, shared by all sequences so that it stays in the processor's cache."""
    return np.zeros(-(-n_vocab // _BLOCK) * _BLOCK, np.float32)


def can_draw(sampling: Sampling) -> bool:
    """Whether its filters are among those of `Draw`; penalties, biases and grammars are for the caller."""
    return sampling.typical_p >= 1 and sampling.xtc_probability <= 0


class Draw:
    """The draws of one sequence: temperature, then ``top_k``, ``top_p`` and ``min_p``, then the draw."""

    def __init__(self, sampling: Sampling, seed: int) -> None:
        """Start at the first draw.

        Args:
            sampling: one that ``can_draw`` is true for; its temperature is above 0.
            seed: a number of 32 bits.
        """
        self._temperature = np.float32(sampling.temperature)
        self._top_k, self._top_p, self._min_p = sampling.top_k, sampling.top_p, sampling.min_p
        self._random = np.random.RandomState(seed)

    def take(self, logits: Logits, scratch: Scratch) -> int:
        """Draw a token; ``logits`` (float32 ``[n_vocab]``) stay as they are."""
        if self._top_k > 0:
            tokens = _largest(logits, self._top_k)
            scaled = logits[tokens] / self._temperature
            odds = np.exp(scaled - scaled[0])
            n_kept = self._n_kept(odds, odds.sum(dtype=np.float64))
        elif self._top_p < 1:
            tokens, odds, total = self._likeliest(self._softmax(logits, scratch))
            n_kept = self._n_kept(odds, total)
        elif self._min_p > 0:
            of_all = self._softmax(logits, scratch)
            tokens = np.flatnonzero(of_all >= self._min_p)
            odds, n_kept = of_all[tokens], len(tokens)
        else:
            return self._from_all(self._softmax(logits, scratch), scratch)
        sums = odds[:n_kept].cumsum(dtype=np.float64)
        return int(tokens[min(int(sums.searchsorted(sums[-1] * self._uniform())), n_kept - 1)])

    def _softmax(self, logits: Logits, scratch: Scratch) -> Scratch:
        """The odds of all tokens, as parts of the likeliest one's, in the scratch memory."""
        odds = scratch[: len(logits)]
        np.divide(logits, self._temperature, out=odds)
        np.subtract(odds, odds.max(), out=odds)
        return np.exp(odds, out=odds)

    def _likeliest(self, odds: Scratch) -> tuple[Tokens, Scratch, float]:
        """Tokens that make up ``top_p`` and some more, the likeliest first; their odds; the sum of the odds of all."""
        total = float(odds.sum(dtype=np.float64))
        for floor in _FLOORS:
            tokens = np.flatnonzero(odds >= floor)
            kept = odds[tokens]
            if kept.sum(dtype=np.float64) >= self._top_p * total:
                break
        order = np.argsort(-kept, kind="stable")
        return tokens[order], kept[order], total

    def _n_kept(self, odds: Scratch, total: float) -> int:
        """How many of these, the likeliest first, ``top_p`` and ``min_p`` keep; 1 at least."""
        n_kept = len(odds)
        if self._top_p < 1:
            n_kept = min(int(odds.cumsum(dtype=np.float64).searchsorted(self._top_p * total)) + 1, n_kept)
        if self._min_p > 0:
            n_kept = min(int(np.count_nonzero(odds >= self._min_p * odds[0])), n_kept)
        return max(n_kept, 1)

    def _from_all(self, odds: Scratch, scratch: Scratch) -> int:
        sums = scratch.reshape(-1, _BLOCK).sum(axis=1, dtype=np.float64).cumsum()
        target = sums[-1] * self._uniform()
        block = int(sums.searchsorted(target))
        start = block * _BLOCK
        within = odds[start : start + _BLOCK].cumsum(dtype=np.float64)
        before = sums[block - 1] if block else 0.0
        return start + min(int(within.searchsorted(target - before)), len(within) - 1)

    def _uniform(self) -> float:
        """The next number from 0 to below 1."""
        return min(int.from_bytes(self._random.bytes(8), "little") / _UNIT, _BELOW_ONE)


def _largest(logits: Logits, k: int) -> Tokens:
    """The ``k`` tokens of the largest logits, or all if they are fewer, the largest first."""
    n_rows = len(logits) // _N_GROUPS
    if k <= _N_GROUPS and n_rows > 1:
        maxima = logits[: n_rows * _N_GROUPS].reshape(n_rows, _N_GROUPS).max(axis=0)
        tokens = np.flatnonzero(logits >= np.partition(maxima, _N_GROUPS - k)[_N_GROUPS - k])
    else:
        tokens = np.arange(len(logits))
    return tokens[np.argsort(-logits[tokens], kind="stable")[:k]]
