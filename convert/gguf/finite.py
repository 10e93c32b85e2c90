"""Finds NaN, infinity and nothing but zeros in tensor data of any type that an adapter may have.

It does not dequantise.

A quantised block is finite if and only if its F16 scales are. Source of the offsets: ggml/src/ggml-common.h.
"""

from types import MappingProxyType
from typing import Final

import numpy as np
import numpy.typing as npt

from convert.gguf.types import GgmlType

_SCALE_OFFSETS: Final = MappingProxyType(
    {
        GgmlType.Q4_0: (0,),
        GgmlType.Q4_1: (0, 2),
        GgmlType.Q5_0: (0,),
        GgmlType.Q5_1: (0, 2),
        GgmlType.Q8_0: (0,),
        GgmlType.Q2_K: (80, 82),
        GgmlType.Q3_K: (108,),
        GgmlType.Q4_K: (0, 2),
        GgmlType.Q5_K: (0, 2),
        GgmlType.Q6_K: (208,),
        GgmlType.IQ4_NL: (0,),
        GgmlType.IQ4_XS: (0,),
    }
)
"""Where in a block its F16 scales stand, in bytes."""


def is_finite(kind: GgmlType, data: npt.NDArray[np.uint8]) -> bool:
    """Say whether every value encoded in `data` is finite.

    Args:
        kind: One of `types.ADAPTER_TYPES`.
        data: (n_bytes,) whole blocks of that type.
    """
    if kind is GgmlType.F32:
        return bool(np.isfinite(data.view(np.float32)).all())
    if kind is GgmlType.F16:
        return bool(((data.view(np.uint16) & 0x7C00) != 0x7C00).all())
    if kind is GgmlType.BF16:
        return bool(((data.view(np.uint16) & 0x7F80) != 0x7F80).all())
    blocks = data.reshape(-1, kind.block.size_bytes)
    exponents = (blocks[:, offset + 1] & 0x7C for offset in _SCALE_OFFSETS[kind])
    return all(bool((exponent != 0x7C).all()) for exponent in exponents)


def is_zero(kind: GgmlType, data: npt.NDArray[np.uint8]) -> bool:
    """Say whether every value encoded in `data` is zero: of a quantised block, if its scales are.

    Args:
        kind: One of `types.ADAPTER_TYPES`.
        data: (n_bytes,) whole blocks of that type.
    """
    if kind is GgmlType.F32:
        return not data.view(np.float32).any()
    if kind in (GgmlType.F16, GgmlType.BF16):
        return not (data.view(np.uint16) & 0x7FFF).any()
    blocks = data.reshape(-1, kind.block.size_bytes)
    return not any(bool((blocks[:, at : at + 2] & (0xFF, 0x7F)).any()) for at in _SCALE_OFFSETS[kind])
