"""A draw from the softmax of all logits: the tokens that llama.cpp's ``dist`` sampler draws with the same seed.

llama.cpp first copies each of the 256,000 logits into a struct and calls ``expf`` one by one, which takes 1.9 ms for
each token; numpy takes a fifth of that. Its ``exp`` may differ from ``expf`` in the last bit, so that one draw in some
ten million may come out as the neighbouring token.

Source: llama.cpp src/llama-sampler.cpp, ``llama_sampler_dist_apply`` (the first token at which the sum of
probabilities reaches a uniform number); C++ standard, ``std::mt19937`` and ``std::generate_canonical`` (that number is
made of two outputs of 32 bits, the lower first).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

_UNIT = float(1 << 64)
_BELOW_ONE = math.nextafter(1.0, 0.0)
# Probabilities are summed in blocks of this many, and one by one only within the block that holds the token.
_BLOCK = 1024

Scratch = npt.NDArray[np.float32]


def make_scratch(n_vocab: int) -> Scratch:
    """Memory for one draw at a time, shared by all sequences so that it stays in the processor's cache."""
    return np.zeros(-(-n_vocab // _BLOCK) * _BLOCK, np.float32)


class Draw:
    """The draws of one sequence."""

    def __init__(self, temperature: float, seed: int) -> None:
        """Start at the first draw.

        Args:
            temperature: what logits are divided by; above 0.
            seed: a number of 32 bits.
        """
        self._temperature = np.float32(temperature)
        self._random = np.random.RandomState(seed)

    def take(self, logits: npt.NDArray[np.float32], scratch: Scratch) -> int:
        """Draw a token; ``logits`` (float32 ``[n_vocab]``) stay as they are."""
        odds = scratch[: len(logits)]
        np.divide(logits, self._temperature, out=odds)
        np.subtract(odds, odds.max(), out=odds)
        np.exp(odds, out=odds)
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
