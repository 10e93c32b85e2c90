"""Adapter files that the engine writes for itself and soon deletes: the template and the self-check's probes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np

from convert.gguf.header import GgufHeader
from convert.rules.gemma import ARCHITECTURE, is_projection

PROBE_RANK = 4
Shapes = Mapping[str, tuple[int, int]]


def lora_shapes(base: GgufHeader) -> dict[str, tuple[int, int]]:
    """``(n_in, n_out)`` of every weight of a base model that a LoRA may change."""
    return {name: (tensor.shape[0], tensor.shape[1]) for name, tensor in base.tensors.items() if is_projection(name)}


def write_template(path: Path, shapes: Shapes) -> None:
    """An adapter that changes nothing, on every weight: it exists so that llama.cpp's graph has LoRA nodes.

    Its rank is 1, whatever the lanes' is. So no backend that takes products from a certain size on gets its nodes (BLAS
    asks for 32 in each dimension), and what the scheduler copies to other devices at each batch is small.
    """
    writer = _writer(path, 1)
    for name, (n_in, n_out) in shapes.items():
        writer.add_tensor(name + ".lora_a", np.zeros((1, n_in), np.float16))
        writer.add_tensor(name + ".lora_b", np.zeros((n_out, 1), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


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
