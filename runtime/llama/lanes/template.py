"""Adapter files that the engine writes for itself and soon deletes: the template and the self-check's probes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from convert.errors import OutputProblem
from convert.gguf.header import GgufHeader, ValueType
from convert.gguf.types import GgmlType
from convert.gguf.writer import FilePlan, KeyValue, TensorPlan, write_gguf
from convert.rules.adapter import ALPHA_KEY
from convert.rules.gemma import ARCHITECTURE, is_projection
from runtime.errors import ModelLoadError, without_folders
from runtime.llama.lanes.weights import LANE_TYPES, Bytes, LanePart

PROBE_RANK = 4
Shapes = Mapping[str, tuple[int, int]]


def lora_shapes(base: GgufHeader) -> dict[str, tuple[int, int]]:
    """``(n_in, n_out)`` of every weight of a base model that a LoRA may change."""
    return {name: (tensor.shape[0], tensor.shape[1]) for name, tensor in base.tensors.items() if is_projection(name)}


def write_template(path: Path, shapes: Shapes) -> None:
    """An adapter that changes nothing, on every weight: it exists so that llama.cpp's graph has LoRA nodes.

    Its rank is 1, whatever the lanes' is. So no backend that takes products from a certain size on gets its nodes (BLAS
    asks for 32 in each dimension), and what the scheduler copies to other devices at each batch is small.

    Raises:
        ModelLoadError: it cannot be written.
    """
    tensors = []
    for name, (n_in, n_out) in shapes.items():
        tensors.append(_tensor(name + ".lora_a", np.zeros((1, n_in), np.float16)))
        tensors.append(_tensor(name + ".lora_b", np.zeros((n_out, 1), np.float16)))
    _write(path, 1, tensors)


def write_probe(path: Path, shapes: Shapes, seed: int) -> None:
    """An adapter that changes every weight about as much as real ones do, with other values for each seed.

    Its values are two numbers and their negatives, which every lane type can hold exactly but for a common factor.

    Raises:
        ModelLoadError: it cannot be written.
    """
    rng = np.random.default_rng(seed)
    tensors = []
    for name, (n_in, n_out) in shapes.items():
        a = rng.choice(np.array([-1, 1], np.float16), (PROBE_RANK, n_in)) / np.float16(np.sqrt(n_in))
        b = rng.choice(np.array([-1, 1], np.float16), (n_out, PROBE_RANK)) * np.float16(0.125)
        tensors += [_tensor(name + ".lora_a", a), _tensor(name + ".lora_b", b)]
    _write(path, PROBE_RANK, tensors)


def write_lane(path: Path, shapes: Shapes, lane_type: str, parts: Sequence[LanePart]) -> None:
    """An adapter for llama.cpp with the very bytes of a lane, the factors of scale and rank being in them.

    Args:
        path: where to write it.
        shapes: ``(n_in, n_out)`` of every weight of the bank.
        lane_type: the bank's.
        parts: what the lane holds.

    Raises:
        ModelLoadError: it cannot be written.
    """
    kind = LANE_TYPES[lane_type]
    n_in_block = kind.block.n_values
    rank = max(-(-part.rank // n_in_block) * n_in_block for part in parts)
    tensors = []
    for part in parts:
        n_in, n_out = shapes[part.name]
        a = part.a.reshape(-1, kind.row_size_bytes(n_in))[:rank]
        b = part.b.reshape(n_out, -1)[:, : kind.row_size_bytes(rank)]
        tensors.append(_plan(part.name + ".lora_a", kind, (rank, n_in), a))
        tensors.append(_plan(part.name + ".lora_b", kind, (n_out, rank), b))
    _write(path, rank, tensors)


def _plan(name: str, kind: GgmlType, shape: tuple[int, int], rows: Bytes) -> TensorPlan:
    data = np.ascontiguousarray(rows).reshape(-1)
    return TensorPlan(name, kind, shape, lambda: [data])


def _tensor(name: str, values: npt.NDArray[np.floating]) -> TensorPlan:
    rows = np.ascontiguousarray(values, np.float16).view(np.uint8)
    return _plan(name, GgmlType.F16, values.shape, rows)


def _write(path: Path, rank: int, tensors: Sequence[TensorPlan]) -> None:
    texts = {"general.architecture": ARCHITECTURE, "general.type": "adapter", "adapter.type": "lora"}
    metadata = [KeyValue(key, ValueType.STRING, value) for key, value in texts.items()]
    metadata.append(KeyValue(ALPHA_KEY, ValueType.FLOAT32, float(rank)))
    try:
        write_gguf(path, FilePlan(metadata, tensors), force=True)
    except OutputProblem as error:
        reason = without_folders(str(error), path)
        raise ModelLoadError(f"in the folder for temporary files, {reason}") from error
