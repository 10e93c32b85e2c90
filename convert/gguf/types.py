"""The tensor types of ggml: number, name, and block layout. Knows no file and no native code.

Source: llama.cpp ggml/include/ggml.h (numbers), ggml/src/ggml-common.h (block sizes).
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final


class GgmlType(IntEnum):
    """A tensor's type, by the number that GGUF files carry."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q8_1 = 9
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    Q8_K = 15
    IQ2_XXS = 16
    IQ2_XS = 17
    IQ3_XXS = 18
    IQ1_S = 19
    IQ4_NL = 20
    IQ3_S = 21
    IQ2_S = 22
    IQ4_XS = 23
    I8 = 24
    I16 = 25
    I32 = 26
    I64 = 27
    F64 = 28
    IQ1_M = 29
    BF16 = 30
    TQ1_0 = 34
    TQ2_0 = 35
    MXFP4 = 39
    NVFP4 = 40

    @property
    def block(self) -> "Block":
        """How this type packs a row."""
        return _BLOCKS[self]

    def row_size_bytes(self, n_values: int) -> int:
        """Return the bytes of a row of `n_values`, which must be a multiple of the block's length."""
        return n_values // self.block.n_values * self.block.size_bytes


@dataclass(frozen=True, slots=True)
class Block:
    """The unit in which a type stores a row: `n_values` weights in `size_bytes` bytes."""

    n_values: int
    size_bytes: int


def _blocks() -> dict[GgmlType, Block]:
    t = GgmlType
    single = {t.F32: 4, t.F16: 2, t.BF16: 2, t.I8: 1, t.I16: 2, t.I32: 4, t.I64: 8, t.F64: 8}
    of_32 = {
        t.Q4_0: 18,
        t.Q4_1: 20,
        t.Q5_0: 22,
        t.Q5_1: 24,
        t.Q8_0: 34,
        t.Q8_1: 36,
        t.IQ4_NL: 18,
        t.MXFP4: 17,
    }
    of_256 = {
        t.Q2_K: 84, t.Q3_K: 110, t.Q4_K: 144, t.Q5_K: 176, t.Q6_K: 210, t.Q8_K: 292,
        t.IQ2_XXS: 66, t.IQ2_XS: 74, t.IQ2_S: 82, t.IQ3_XXS: 98, t.IQ3_S: 110,
        t.IQ1_S: 50, t.IQ1_M: 56, t.IQ4_XS: 136, t.TQ1_0: 54, t.TQ2_0: 66,
    }  # fmt: skip
    table = {t.NVFP4: Block(64, 36)}
    for n_values, sizes in ((1, single), (32, of_32), (256, of_256)):
        table |= {kind: Block(n_values, size_bytes) for kind, size_bytes in sizes.items()}
    return table


_BLOCKS: Final = _blocks()

FLOATS: Final = frozenset({GgmlType.F32, GgmlType.F16, GgmlType.BF16})

MULTIPLIABLE: Final = FLOATS | frozenset(
    kind for kind in GgmlType if "Q" in kind.name and kind not in (GgmlType.Q8_1, GgmlType.Q8_K)
)
"""Types that llama.cpp can multiply with; the integers, F64, Q8_1 and Q8_K crash it at the first decode."""

ADAPTER_TYPES: Final = frozenset(kind for kind in MULTIPLIABLE if kind in FLOATS or kind.name.startswith(("Q", "IQ4")))
"""Types an adapter may have: those whose values can be checked (see `convert.gguf.finite`)."""
