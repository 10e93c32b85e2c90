"""ggml's own row quantisers, called with checked arguments: the only native code in the converter's own process.

Loads `libggml-base` from the installed llama-cpp-python and nothing else of it: no model, no backend, no GPU.
ggml aborts the process on a bad argument, so types, shapes and contiguity are settled here before each call.

Source of the declarations: llama.cpp ggml/include/ggml.h, as of llama-cpp-python 0.3.36.
"""

import ctypes
import importlib.util
import sys
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from convert.errors import NativeFailure
from convert.gguf.types import MULTIPLIABLE, GgmlType

_LIBRARY_NAMES: Final = {"darwin": "libggml-base.dylib", "win32": "ggml-base.dll"}
_NEEDS_IMPORTANCE: Final = frozenset({GgmlType.IQ2_XXS, GgmlType.IQ2_XS, GgmlType.IQ1_S})

F32Array = npt.NDArray[np.float32]
U8Array = npt.NDArray[np.uint8]


class _TypeTraits(ctypes.Structure):
    """The start of `struct ggml_type_traits`."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("block_values", ctypes.c_int64),
        ("block_interleave", ctypes.c_int64),
        ("block_bytes", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.c_void_p),
    )


_TO_FLOAT: Final = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


class Ggml:
    """ggml's row quantisers. Stateless once built; every method may run in several threads at once."""

    def __init__(self) -> None:
        """Load the library.

        Raises:
            NativeFailure: llama-cpp-python is not installed, or its library lays out blocks differently from
                this module.
        """
        self._library = ctypes.CDLL(str(_library_path()))
        self._quantize = self._library.ggml_quantize_chunk
        self._quantize.restype = ctypes.c_size_t
        self._quantize.argtypes = (
            ctypes.c_int,
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_int64,
            ctypes.c_int64,
            ctypes.c_int64,
            ctypes.c_void_p,
        )
        self._traits = self._library.ggml_get_type_traits
        self._traits.restype = ctypes.POINTER(_TypeTraits)
        self._traits.argtypes = (ctypes.c_int,)
        for kind in MULTIPLIABLE:
            traits = self._traits(kind).contents
            if (traits.block_values, traits.block_bytes) != (kind.block.n_values, kind.block.size_bytes):
                raise NativeFailure(f"the installed llama.cpp packs {kind.name} differently from this converter")

    def quantize(self, kind: GgmlType, rows: F32Array, importance: F32Array | None = None) -> U8Array:
        """Encode rows.

        Args:
            kind: The wanted type; rows must be whole blocks of it.
            rows: (n_rows, n_columns) finite float32.
            importance: (n_columns,) mean squared activation of each column, or None.

        Returns:
            (n_rows * row bytes,) encoded rows.

        Raises:
            NativeFailure: The type needs `importance`, or ggml wrote another number of bytes than expected.
        """
        n_rows, n_columns = rows.shape
        if kind not in MULTIPLIABLE or n_columns % kind.block.n_values:
            raise NativeFailure(f"rows of {n_columns} values cannot be stored as {kind.name}")
        if kind in _NEEDS_IMPORTANCE and importance is None:
            raise NativeFailure(f"{kind.name} needs an importance matrix")
        rows = np.ascontiguousarray(rows, np.float32)
        weights = None
        if importance is not None:
            weights = np.ascontiguousarray(importance, np.float32)
            if weights.shape != (n_columns,):
                raise NativeFailure(f"importance of {weights.shape} values for rows of {n_columns}")
        encoded = np.empty(n_rows * kind.row_size_bytes(n_columns), np.uint8)
        pointer = None if weights is None else weights.ctypes.data
        written = self._quantize(kind, rows.ctypes.data, encoded.ctypes.data, 0, n_rows, n_columns, pointer)
        if written != encoded.size:
            raise NativeFailure(f"ggml wrote {written} bytes of {kind.name} where {encoded.size} were expected")
        return encoded

    def dequantize(self, kind: GgmlType, encoded: U8Array, n_columns: int) -> F32Array:
        """Decode rows.

        Args:
            kind: The type of `encoded`.
            encoded: (n_bytes,) whole rows of `n_columns` values.
            n_columns: Values per row.

        Returns:
            (n_rows, n_columns) float32.

        Raises:
            NativeFailure: The bytes are not whole rows.
        """
        row_bytes = kind.row_size_bytes(n_columns)
        if kind not in MULTIPLIABLE or n_columns % kind.block.n_values or encoded.size % row_bytes:
            raise NativeFailure(f"{encoded.size} bytes are not whole rows of {n_columns} values of {kind.name}")
        encoded = np.ascontiguousarray(encoded, np.uint8)
        rows = np.empty((encoded.size // row_bytes, n_columns), np.float32)
        if kind is GgmlType.F32:
            rows[:] = encoded.view(np.float32).reshape(rows.shape)
        else:
            to_float = _TO_FLOAT(self._traits(kind).contents.to_float)
            to_float(encoded.ctypes.data, rows.ctypes.data, rows.size)
        return rows


def _library_path() -> Path:
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise NativeFailure("llama-cpp-python is not installed; its quantisers are needed")
    path = Path(spec.origin).parent / "lib" / _LIBRARY_NAMES.get(sys.platform, "libggml-base.so")
    if not path.is_file():
        raise NativeFailure(f"{path}: llama-cpp-python's library is missing")
    return path
