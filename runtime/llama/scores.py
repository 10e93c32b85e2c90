"""Logprobs from logits. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class RowScore:
    """One token's logprob in a row of logits, and the likeliest tokens with theirs, likeliest first."""

    logprob: float
    likeliest: tuple[tuple[int, float], ...]


def score(logits: npt.NDArray[np.float32], token: int, n_likeliest: int) -> RowScore:
    """Natural logarithms of the probabilities that the softmax of ``logits`` (float32 ``[n_vocab]``) gives.

    Computed in float64, so that the logprobs of a row are exact to what the logits themselves hold.
    """
    wide = logits.astype(np.float64)
    wide -= wide.max()
    wide -= np.log(np.exp(wide).sum())
    n_likeliest = min(n_likeliest, len(wide))
    if not n_likeliest:
        return RowScore(float(wide[token]), ())
    best = np.argpartition(-wide, n_likeliest - 1)[:n_likeliest]
    best = best[np.lexsort((best, -wide[best]))]
    return RowScore(float(wide[token]), tuple((int(one), float(wide[one])) for one in best))
