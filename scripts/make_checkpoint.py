"""Makes a Gemma checkpoint of real size with random weights, to measure conversion and serving without real ones.

    python -m scripts.make_checkpoint DIRECTORY --shape 2b     (from the root of the repository; 5 GB, 17 GB for 7b)

Shapes, names, shards and dtype are those of google/gemma-2b-it and google/gemma-7b-it; the weights repeat one block of
normal numbers at shifting places, and the tokenizer is the tiny Gemma's, filled up to 256,000 tokens.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from tests.tiny_gemma.files import BASE

SHAPES: Final = {
    "2b": {"layers": 18, "width": 2048, "ff": 16384, "heads": 8, "kv_heads": 1},
    "7b": {"layers": 28, "width": 3072, "ff": 24576, "heads": 16, "kv_heads": 16},
}
HEAD_DIM: Final = 256
N_VOCAB: Final = 256_000
SHARD_BYTES: Final = 5 << 30
BLOCK_VALUES: Final = 1 << 24


def tensors(shape: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Return every tensor's name and shape, rows first."""
    width, ff = shape["width"], shape["ff"]
    q, kv = shape["heads"] * HEAD_DIM, shape["kv_heads"] * HEAD_DIM
    named: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (N_VOCAB, width), "model.norm.weight": (width,)}
    for layer in range(shape["layers"]):
        prefix = f"model.layers.{layer}."
        named |= {
            prefix + "input_layernorm.weight": (width,),
            prefix + "post_attention_layernorm.weight": (width,),
            prefix + "self_attn.q_proj.weight": (q, width),
            prefix + "self_attn.k_proj.weight": (kv, width),
            prefix + "self_attn.v_proj.weight": (kv, width),
            prefix + "self_attn.o_proj.weight": (width, q),
            prefix + "mlp.gate_proj.weight": (ff, width),
            prefix + "mlp.up_proj.weight": (ff, width),
            prefix + "mlp.down_proj.weight": (width, ff),
        }
    return named


def shards(named: dict[str, tuple[int, ...]]) -> list[list[str]]:
    """Split the names into files of at most `SHARD_BYTES`."""
    files: list[list[str]] = [[]]
    size_bytes = 0
    for name, shape in named.items():
        n_bytes = 2 * int(np.prod(shape))
        if size_bytes + n_bytes > SHARD_BYTES and files[-1]:
            files.append([])
            size_bytes = 0
        files[-1].append(name)
        size_bytes += n_bytes
    return files


def values(n_values: int, block: npt.NDArray[np.uint16], start: int) -> Iterator[npt.NDArray[np.uint16]]:
    """Yield `n_values` bf16 values of the block, from `start` on, and again from its beginning."""
    while n_values > 0:
        piece = block[start : start + n_values]
        yield piece
        n_values -= piece.size
        start = 0


def write_shard(path: Path, named: dict[str, tuple[int, ...]], block: npt.NDArray[np.uint16]) -> None:
    """Write one safetensors file."""
    header, offset = {}, 0
    for name, shape in named.items():
        end = offset + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    raw = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for number, shape in enumerate(named.values()):
            for piece in values(int(np.prod(shape)), block, number * 7919 % BLOCK_VALUES):
                file.write(piece.data)


def write_config(directory: Path, shape: dict[str, int]) -> None:
    """Write config.json and the tokenizer's files."""
    config = json.loads((BASE / "config.json").read_text()) | {
        "hidden_size": shape["width"],
        "intermediate_size": shape["ff"],
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["kv_heads"],
        "head_dim": HEAD_DIM,
        "max_position_embeddings": 8192,
        "vocab_size": N_VOCAB,
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(BASE / name, directory / name)


def main() -> None:
    """Make the checkpoint in a directory that does not exist yet."""
    parser = argparse.ArgumentParser(description="Make a Gemma checkpoint with random weights.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="2b")
    arguments = parser.parse_args()
    named = tensors(SHAPES[arguments.shape])
    normal = np.random.default_rng(0).standard_normal(BLOCK_VALUES, np.float32) * np.float32(0.02)
    block = (normal.view(np.uint32) >> 16).astype(np.uint16)
    arguments.directory.mkdir(parents=True)
    write_config(arguments.directory, SHAPES[arguments.shape])
    files = shards(named)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(files, 1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        write_shard(arguments.directory / name, {key: named[key] for key in names}, block)
        weight_map |= dict.fromkeys(names, name)
        print(f"{name}: {len(names)} tensors", file=sys.stderr)
    index = {"metadata": {}, "weight_map": weight_map}
    (arguments.directory / "model.safetensors.index.json").write_text(json.dumps(index))


if __name__ == "__main__":
    main()
