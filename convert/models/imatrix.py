"""Importance matrices: how strongly each input column of each weight was excited, as llama.cpp's imatrix tool writes.

Source: llama.cpp tools/imatrix/imatrix.cpp (GGUF form: `<weight>.in_sum2`, `<weight>.counts`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np

from convert.errors import MalformedFile, MalformedGguf, TensorMismatch
from convert.files import open_regular
from convert.gguf.header import MAGIC
from convert.gguf.quantisers import Ggml
from convert.gguf.types import GgmlType
from convert.tensors.gguf import GgufRows, OpenGguf
from convert.tensors.sources import F32Array

_SUMS: Final = ".in_sum2"
_COUNTS: Final = ".counts"


def read_importance(path: Path, shapes: Mapping[str, tuple[int, ...]], ggml: Ggml) -> dict[str, F32Array]:
    """Read the mean squared activation of every column of every weight in the file.

    Args:
        path: An imatrix GGUF.
        shapes: The model's tensors, name -> shape with rows first.
        ggml: Decodes the file's values.

    Returns:
        Weight name -> (n_columns,) float32.

    Raises:
        MalformedGguf: Not an imatrix file.
        TensorMismatch: It was made for another model.
    """
    with open_regular(path) as file:
        if file.read(4) != MAGIC:
            raise MalformedFile(f"{path}: not a GGUF; convert an old imatrix.dat with `llama-imatrix --in-file` first")
    importance = {}
    with OpenGguf(path) as gguf:
        if gguf.header.string("general.type") != "imatrix":
            raise MalformedGguf(f"{path}: general.type is not 'imatrix'")
        for key in gguf.header.tensors:
            name = key.removesuffix(_SUMS)
            if name != key:
                importance[name] = _mean(gguf, name, ggml)
    for name, values in importance.items():
        if name in shapes and shapes[name][-1] != values.size:
            raise TensorMismatch(f"{path}: {name!r} has {values.size} columns, but the model's has {shapes[name][-1]}")
    if not set(importance) & set(shapes):
        raise TensorMismatch(f"{path}: none of its weights belongs to this model")
    return importance


def _mean(gguf: OpenGguf, name: str, ggml: Ggml) -> F32Array:
    """Return sums / counts; 1 everywhere for a weight that was never used, as llama.cpp takes it."""
    path, tensors = gguf.header.path, gguf.header.tensors
    if name + _COUNTS not in tensors:
        raise MalformedGguf(f"{path}: {name + _SUMS!r} has no {_COUNTS[1:]} beside it")
    for key in (name + _SUMS, name + _COUNTS):
        if tensors[key].type is not GgmlType.F32:
            raise MalformedGguf(f"{path}: {key!r} must be F32")
    sums = GgufRows(gguf, name + _SUMS, ggml)
    counts = GgufRows(gguf, name + _COUNTS, ggml)
    if np.prod(sums.shape[:-1]) != 1 or np.prod(counts.shape) != 1:
        raise MalformedGguf(f"{path}: {name!r} has several matrices (experts), which Gemma does not have")
    count = float(counts.read(0, 1)[0, 0])
    values: F32Array = sums.read(0, 1)[0]
    if count <= 0.0:
        return np.ones_like(values)
    with np.errstate(over="ignore"):
        values /= np.float32(count)
    if not (np.isfinite(values).all() and (values >= 0.0).all()):
        raise MalformedGguf(f"{path}: {name!r} has means of squares that are negative or not finite")
    return values
