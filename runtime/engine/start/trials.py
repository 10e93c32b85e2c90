"""What the self-check runs: batches of every width at which some backend changes its kernel, and every change of lanes.

Pure values. A trial's batches are decoded one after the other on empty sequences, once under each of llama.cpp's own
adapters, then once for each of its rounds in lanes. Lane 0 is the base model; lanes 1 and 2 hold two probes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

N_PROBES = 2
N_SEQUENCES = 4
# Where kernels change: CPU and CUDA take other ones above 1 and above 8 columns, Metal above 8 (ggml-metal-common.cpp,
# use_mm) and from 32 on for MUL_MAT_ID, BLAS from 32 on (ggml-blas.cpp, supports_op), CUDA above 64 (mmq.cuh).
_WIDTHS = (8, 9, 31, 32, 33, 64, 65)
_MIXED, _MIXED_ANEW, _WITHOUT_BASE = (0, 1, 2, 1), (2, 0, 1, 1), (1, 2, 1, 2)
_BASE, _ONE, _OTHER = (0, 0, 0, 0), (1, 1, 1, 1), (2, 2, 2, 2)
# A graph is kept from its second use on, so each state is used three times before the next.
_N_USES = 3

Lanes = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Trial:
    """Batches, and the lanes of each sequence in each round."""

    name: str
    batches: tuple[tuple[int, ...], ...]
    """For each batch the number of new tokens of each sequence; 0 leaves the sequence out."""
    rounds: tuple[Lanes, ...]

    @property
    def lanes(self) -> frozenset[int]:
        """The lanes that some round uses."""
        return frozenset(lane for lanes in self.rounds for lane in lanes)

    @property
    def n_tokens(self) -> int:
        """Tokens of all batches."""
        return sum(map(sum, self.batches))


WHOLE_MODEL = Trial("one token of each sequence", ((1, 1),), ((1, 2),))
"""Short, for the model itself: every layer and every device, in one mixed batch."""


def trials(n_batch: int) -> tuple[Trial, ...]:
    """Everything to run on a model of few layers, for batches of at most ``n_batch`` tokens."""
    widths = [width for width in _WIDTHS if width < n_batch]
    return (
        Trial("one lane after the other, a token at a time", ((1,),), tuple(_one_lane_after_the_other())),
        Trial("base, one lane and mixed in every order", ((1, 1, 1, 1),), tuple(_every_order())),
        Trial("prompts beside answers", ((3, 2, 0, 0), (1, 1, 20, 0), (1, 1, 1, 12), (1, 1, 1, 1)), (_MIXED, _OTHER)),
        *(Trial(f"a batch of {width}", (_split(width),), (_MIXED, _ONE)) for width in widths),
        # Reads no base: the widest batch takes most of the check's time.
        Trial(f"a batch of {n_batch}", (_split(n_batch),), (_WITHOUT_BASE, _OTHER)),
    )


def _split(width: int) -> tuple[int, ...]:
    """A batch's tokens, dealt out to the sequences."""
    n_each, rest = divmod(width, N_SEQUENCES)
    return tuple(n_each + (sequence < rest) for sequence in range(N_SEQUENCES))


def _one_lane_after_the_other() -> Iterator[Lanes]:
    """Each state is kept for a while, then changed at each step."""
    for lane in (1, 2, 0, 2, 1, 0, 1):
        yield from [(lane,)] * _N_USES
    for lane in (1, 2, 1, 0, 2, 0, 1, 2):
        yield (lane,)


def _every_order() -> Iterator[Lanes]:
    """All nine changes between none, one and mixed, what stays included, with other lanes at each return."""
    for lanes in (_BASE, _BASE, _ONE, _OTHER, _MIXED, _MIXED_ANEW, _BASE, _MIXED, _ONE, _BASE):
        yield from [lanes] * _N_USES
    for lanes in (_OTHER, _ONE, _MIXED_ANEW, _MIXED, _BASE, _MIXED_ANEW, _OTHER):
        yield lanes
