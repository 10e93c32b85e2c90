"""Adapter files that the engine writes for itself and soon deletes: the template and the self-check's probes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np

from convert.gguf.header import GgufHeader
from convert.gguf.types import GgmlType
from convert.rules.gemma import ARCHITECTURE, is_projection

PROBE_RANK = 4
Shapes = Mapping[str, tuple[int, int]]
_BLOCK = 32


def lora_shapes(base: GgufHeader) -> dict[str, tuple[int, int]]:
    """``(n_in, n_out)`` of every weight of a base model that a LoRA may change."""
    return {name: (tensor.shape[0], tensor.shape[1]) for name, tensor in base.tensors.items() if is_projection(name)}


def write_template(path: Path, shapes: Shapes, rank: int) -> None:
    """An adapter that changes nothing, on every weight: it exists so that llama.cpp's graph has LoRA nodes.

    Its rank must be the lanes': the nodes' results are sized by it. Its weights are never read, so they take the
    smallest type; the file is a hole of zeros.
    """
    has_blocks = rank % _BLOCK == 0 and all(n_in % _BLOCK == 0 for n_in, _ in shapes.values())
    kind = GgmlType.Q4_0 if has_blocks else GgmlType.F16
    writer = _writer(path, rank)
    size = 0
    for name, (n_in, n_out) in shapes.items():
        for suffix, n_rows, n_columns in ((".lora_a", rank, n_in), (".lora_b", n_out, rank)):
            n_bytes = n_rows * kind.row_size_bytes(n_columns)
            writer.add_tensor_info(
                name + suffix, (n_rows, n_columns), np.dtype(np.float16), n_bytes, gguf.GGMLQuantizationType(kind)
            )
            size += -(-n_bytes // _BLOCK) * _BLOCK
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    header_bytes = -(-path.stat().st_size // _BLOCK) * _BLOCK
    with path.open("r+b") as file:
        file.truncate(header_bytes + size)


def write_probe(path: Path, shapes: Shapes, seed: int) -> None:
    """An adapter that changes every weight about as much as real ones do, told apart by its seed.

    Its values are two numbers and their negatives, which every lane type can hold exactly but for a common factor.
    """
    rng = np.random.default_rng(seed)
    writer = _writer(path, PROBE_RANK)
    for name, (n_in, n_out) in shapes.items():
        a = rng.choice(np.array([-1, 1], np.float16), (PROBE_RANK, n_in)) / np.float16(np.sqrt(n_in))
        b = rng.choice(np.array([-1, 1], np.float16), (n_out, PROBE_RANK)) * np.float16(0.125)
        writer.add_tensor(name + ".lora_a", np.ascontiguousarray(a, np.float16))
        writer.add_tensor(name + ".lora_b", np.ascontiguousarray(b, np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _writer(path: Path, rank: int) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(rank))
    return writer
