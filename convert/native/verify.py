"""Compares two models by their logits on the same tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from convert.errors import RejectedModel
from convert.gguf.header import read_header
from convert.native.child import Subject, logits
from convert.rules.check import validate_adapter, validate_model
from convert.tensors.sources import F32Array

TEXTS: Final = (
    "<start_of_turn>user\nWhat is the capital of France?<end_of_turn>\n<start_of_turn>model\nThe capital of France is",
    "<start_of_turn>user\nHello! Who are you?<end_of_turn>\n<start_of_turn>model\n",
    "The opposite of hot is cold. Two plus three is five. The sky is",
)
"""What is asked if the user gives no text of their own."""

NO_EFFECT_KL: Final = 1e-6  # an adapter in F16 alone moves the distribution by about 1e-7 [measured on the tiny Gemma]


@dataclass(frozen=True, slots=True)
class Comparison:
    """How far two sets of logits are apart, over all positions.

    `mean_kl` is the mean Kullback-Leibler divergence of the candidate's next-token distribution from the reference's,
    in nats; `top1` is the share of positions where both have the same most likely token.
    """

    n_positions: int
    max_difference: float
    mean_kl: float
    top1: float


def compare(reference: Sequence[F32Array], candidate: Sequence[F32Array]) -> Comparison:
    """Compare logits, each (n_tokens, n_vocab), sequence by sequence."""
    max_difference, kl_sum, n_same, n_positions = 0.0, 0.0, 0, 0
    for ours, theirs in zip(reference, candidate, strict=True):
        p, q = _log_softmax(ours), _log_softmax(theirs)
        max_difference = max(max_difference, float(np.abs(ours - theirs).max()))
        kl_sum += float((np.exp(p) * (p - q)).sum())
        n_same += int((ours.argmax(axis=1) == theirs.argmax(axis=1)).sum())
        n_positions += len(ours)
    return Comparison(n_positions, max_difference, kl_sum / n_positions, n_same / n_positions)


def verify(reference: Subject, candidate: Subject, texts: Sequence[str] = TEXTS, n_threads: int = 1) -> Comparison:
    """Check both subjects' files and compare their logits on the reference's tokens of `texts`.

    Raises:
        ConvertError: A file breaks a rule.
        RejectedModel: The two have different vocabularies.
        NativeFailure: llama.cpp refused or died.
    """
    sizes = [_check(subject) for subject in (reference, candidate)]
    if sizes[0] != sizes[1]:
        raise RejectedModel(
            f"{candidate.model}: a vocabulary of {sizes[1]} tokens, but {reference.model} has {sizes[0]}"
        )
    tokens, expected = logits(reference, texts, n_threads=n_threads)
    _, found = logits(candidate, texts, tokens, n_threads)
    return compare(expected, found)


def _check(subject: Subject) -> int:
    summary = validate_model(subject.model)
    if subject.adapter is not None:
        validate_adapter(subject.adapter, read_header(subject.model))
    return summary.hyperparameters.n_vocab


def _log_softmax(values: F32Array) -> "np.ndarray[tuple[int, int], np.dtype[np.float64]]":
    wide = values.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return wide
