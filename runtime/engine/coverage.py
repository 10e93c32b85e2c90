"""Which tokens of a sequence run under its blend.

An activated LoRA (aLoRA) applies from the last invocation sequence of its prompt on; the tokens before it run under the
base model. Their keys and values are therefore those of the base, and the base and every aLoRA can share them.

Source: PEFT 0.21 ``tuners/lora/variants.py``, ``calculate_alora_offsets`` and ``ALoraLinearVariant``: the first token
of the last whole match in the prompt is the first token under the adapter; without a match the adapter stays inactive,
and an invocation sequence inside the answer changes nothing.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from runtime.generation import BASE, Blend

_EVERYWHERE = sys.maxsize
"""More positions than any sequence has."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """The tokens from position ``start`` on run under ``blend``, those before it under the base model."""

    blend: Blend = BASE
    start: int = 0

    def __post_init__(self) -> None:
        """Set ``start`` to 0 for the base model, so that equal coverages compare equal.

        Raises:
            ValueError: ``start`` is negative.
        """
        if self.start < 0:
            raise ValueError(f"start must not be negative, but is {self.start}")
        if self.blend.is_base:
            object.__setattr__(self, "start", 0)

    def blend_at(self, position: int) -> Blend:
        """The blend that the token at ``position`` runs under."""
        return self.blend if position >= self.start else BASE

    def n_shared(self, other: Coverage) -> int:
        """The number of leading positions that have the same blend in both coverages."""
        return _EVERYWHERE if self == other else min(self._n_base, other._n_base)

    def of_first(self, n_tokens: int) -> Coverage:
        """The coverage of a prefix of ``n_tokens``: that of the base model if the blend starts later."""
        return BASE_COVERAGE if n_tokens <= self.start else self

    @property
    def _n_base(self) -> int:
        """Leading positions that run under the base model."""
        return _EVERYWHERE if self.blend.is_base else self.start


BASE_COVERAGE = Coverage()


def cover(blend: Blend, invocation: Sequence[int], prompt: Sequence[int]) -> Coverage:
    """The tokens of a prompt, and of the answer to it, that run under a blend.

    Args:
        blend: what the request asks for.
        invocation: the token sequence that activates the blend; empty for a blend that is always active.
        prompt: the prompt's tokens.
    """
    if not invocation:
        return Coverage(blend)
    start = _last_match(prompt, invocation)
    return BASE_COVERAGE if start is None else Coverage(blend, start)


def _last_match(tokens: Sequence[int], wanted: Sequence[int]) -> int | None:
    """Where the last occurrence of ``wanted`` begins in ``tokens``."""
    text, pattern = array("i", tokens).tobytes(), array("i", wanted).tobytes()
    width = array("i").itemsize
    end = len(text)
    while (place := text.rfind(pattern, 0, end)) >= 0:
        if place % width == 0:
            return place // width
        end = place + len(pattern) - 1
    return None
