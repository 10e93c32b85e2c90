"""A blend in a lane is the model with the blend merged into its weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from convert.gguf.header import read_header
from runtime.llama.context import Chunk, Context
from runtime.llama.library import Library
from tests.runtime.llama.conftest import SHAPE, MakeBench, load, tokens_of

# As in test_lanes.py, and for its reason.
BOUND = 4e-3
SCALES = {"pirate": 0.7, "shout": -0.4, "tag": 1.3}


def merged(source: Path, adapters: Path, target: Path) -> Path:
    """A copy of an F32 model with ``sum(scale * alpha / rank * B @ A)`` added to its weights, by numpy in F64."""
    shutil.copy(source, target)
    base = read_header(target)
    weights = np.memmap(target, np.uint8, "r+")
    for name, scale in SCALES.items():
        header = read_header(adapters / f"{name}.gguf")
        values = np.fromfile(adapters / f"{name}.gguf", np.uint8)
        pairs = {tensor.removesuffix(".lora_a") for tensor in header.tensors if tensor.endswith(".lora_a")}
        for pair in pairs:
            a, b = (header.tensors[pair + suffix] for suffix in (".lora_a", ".lora_b"))
            matrix_a, matrix_b = (
                values[one.offset : one.offset + one.size_bytes].view(np.float32).reshape(one.shape[::-1]).astype(float)
                for one in (a, b)
            )
            alpha = header.number("adapter.lora.alpha") or 0.0
            delta = scale * alpha / b.shape[0] * matrix_b @ matrix_a
            tensor = base.tensors[pair]
            flat = weights[tensor.offset : tensor.offset + tensor.size_bytes].view(np.float32)
            flat += delta.astype(np.float32).reshape(-1)
    weights.flush()
    return target


def test_a_blend_is_the_merged_model(
    make_bench: MakeBench, library: Library, tiny_model_f32: Path, adapters_f32: Path, tmp_path: Path
) -> None:
    """Three adapters with scales of their own, one negative, beside other lanes; F32 sums in another order."""
    bench = make_bench()
    bench.fill(1, **SCALES)
    bench.fill(2, shout=1.0)
    model = load(library, merged(tiny_model_f32, adapters_f32, tmp_path / "merged.gguf"))
    reference = Context(model, SHAPE)
    tokens = tokens_of("merged", 30)
    chunks = [Chunk(sequence_id, tokens, 0, wants_logits=True) for sequence_id in range(3)]
    rows = bench.laned.decode(chunks, [2, 1, 0])
    (row,) = reference.decode([Chunk(0, tokens, 0, wants_logits=True)])
    expected = reference.logits(row)
    assert np.abs(expected - bench.laned.context.logits(rows[1])).max() < BOUND
    assert np.abs(expected - bench.laned.context.logits(rows[0])).max() > 0.5
    reference.free()
    model.free()
