"""Writes a Gemma-shaped GGUF with random weights, and random LoRA adapters of it, for benchmarks.

Speed and memory depend on shapes and types, not on what a model has learnt, so these files stand in for
weights that are too large to keep. Each depends on its seed alone. Tensors are drawn and written in pieces of
a few MB: a 7B-shaped model takes 5 GB of disk and 100 MB of memory.

    python -m scripts.make_shapes                            .gemlane/shapes/2b-q4_0.gguf
    python -m scripts.make_shapes --adapters 8 --rank 16     and its adapters 001.gguf to 008.gguf in a folder
    python -m scripts.make_shapes --shape 7b --type q8_0 /data/shapes

The vocabulary has Gemma's layout; its words are numbers: `" 7 42"` is two tokens. The embedding rows of
control, newline, space, tag and byte tokens are zero, so the tied head gives them logit 0, far below the largest
of the words' random logits. Greedy answers therefore never end early, and two servers generate the same number of
tokens.
"""

import argparse
import itertools
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType
from numpy.typing import NDArray

from convert.models.mix import MODEL_TYPES, Mix
from convert.rules.gemma import Hyperparameters

DEFAULT_FOLDER = Path(".gemlane/shapes")
PIECE_ELEMENTS = 1 << 23  # elements drawn at a time: 32 MB as F32
N_CTX, NORM_EPSILON = 8192, 1e-6
ALIGNMENT = 32  # bytes; GGUF's default for tensor data (gguf.GGUF_DEFAULT_ALIGNMENT)
# Standard deviations of weights times the square root of their inputs, so that every shape behaves alike: a
# block adds about as much to the residual stream as is there; an adapter moves each product by a tenth; and a
# token's own embedding is small beside what the blocks add, or the tied head would repeat the token for ever.
WEIGHT_GAIN = 0.9
ADAPTER_GAIN = 0.3
EMBEDDING_GAIN = 0.05
OUTPUT_NORM = 40.0  # times EMBEDDING_GAIN: the logits' standard deviation
FIRST_WORD_ID = 473  # after the 256 byte tokens, as in Gemma's tokenizer

TYPES = {name: GGMLQuantizationType[name.upper()] for name in ("f32", "f16", "q8_0", "q4_0")}
MIXED_TYPE = "q4_k_m"  # Q4_K, and Q6_K for the tensors that llama.cpp gives more bits
FILE_TYPES = {
    MIXED_TYPE: LlamaFileType.MOSTLY_Q4_K_M,
    "f32": LlamaFileType.ALL_F32,
    "f16": LlamaFileType.MOSTLY_F16,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
    "q4_0": LlamaFileType.MOSTLY_Q4_0,
}


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Gemma. Source of 2b and 7b: gemma_pytorch config.py."""

    n_blocks: int
    width: int
    feed_forward: int
    n_heads: int
    n_kv_heads: int
    head_width: int
    n_vocab: int

    def weights(self) -> Iterator[tuple[str, int, int]]:
        """The matrices of all blocks, which are also LoRA's targets: (name, n_out, n_in)."""
        queries, keys = self.n_heads * self.head_width, self.n_kv_heads * self.head_width
        for block in range(self.n_blocks):
            for name, n_out, n_in in (
                ("attn_q", queries, self.width),
                ("attn_k", keys, self.width),
                ("attn_v", keys, self.width),
                ("attn_output", self.width, queries),
                ("ffn_gate", self.feed_forward, self.width),
                ("ffn_up", self.feed_forward, self.width),
                ("ffn_down", self.width, self.feed_forward),
            ):
                yield f"blk.{block}.{name}.weight", n_out, n_in


SHAPES = {
    "tiny": Shape(4, 256, 1024, 4, 4, 64, 2048),
    "2b": Shape(18, 2048, 16384, 8, 1, 256, 256_000),
    "7b": Shape(28, 3072, 24576, 16, 16, 256, 256_000),
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor to be written: `n_out` rows of `n_in` elements. With `rows`, all other rows are zero.

    The standard deviation of its normal (F32, F16) or uniform (quantised) elements is `gain / sqrt(n_in)`; a
    gain of None means that all are `fill`.
    """

    name: str
    n_out: int
    n_in: int
    type: GGMLQuantizationType
    gain: float | None
    fill: float = 0.0
    rows: range | None = None

    @property
    def row_bytes(self) -> int:
        """Bytes of a row as stored."""
        block_elements, block_bytes = GGML_QUANT_SIZES[self.type]
        return int(self.n_in // block_elements * block_bytes)

    def pieces(self, generator: np.random.Generator) -> Iterator[NDArray[np.uint8]]:
        """Draws the rows in order, as stored bytes, `[n_rows, row_bytes]` u8 at a time."""
        step = max(1, PIECE_ELEMENTS // self.n_in)
        for first in range(0, self.n_out, step):
            n_rows = min(step, self.n_out - first)
            if self.gain is None:
                yield np.full((n_rows, self.n_in), self.fill, np.float32).view(np.uint8)
                continue
            rows = draw_rows(generator, n_rows, self.n_in, self.type, self.gain / math.sqrt(self.n_in))
            if self.rows is not None:  # zero bytes are zeros in all these types
                rows[: max(0, self.rows.start - first)] = 0
                rows[max(0, self.rows.stop - first) :] = 0
            yield rows


def draw_rows(
    generator: np.random.Generator, n_rows: int, n_in: int, kind: GGMLQuantizationType, std: float
) -> NDArray[np.uint8]:
    """Random rows of mean zero, as stored. Source of layouts: ggml-common.h, block_q4_0 and block_q8_0."""
    if kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
        dtype = np.float32 if kind == GGMLQuantizationType.F32 else np.float16
        values = generator.standard_normal((n_rows, n_in), np.float32) * np.float32(std)
        return values.astype(dtype).view(np.uint8)
    if kind in (GGMLQuantizationType.Q4_K, GGMLQuantizationType.Q6_K):
        return draw_super_blocks(generator, n_rows, n_in, kind, std)
    n_blocks = n_rows * n_in // 32
    if kind == GGMLQuantizationType.Q4_0:  # 16 bytes of two nibbles; 1..15 stands for -7..7, of std 4.32
        pairs = np.array([low | high << 4 for low, high in itertools.product(range(1, 16), repeat=2)], np.uint8)
        quants = pairs[generator.integers(0, len(pairs), (n_blocks, 16), np.uint8)]
        scale = std / 4.32
    else:  # 32 signed bytes; -127..127, of std 73.3
        quants = generator.integers(-127, 127, (n_blocks, 32), np.int8, endpoint=True).view(np.uint8)
        scale = std / 73.3
    scales = np.broadcast_to(np.array([scale], np.float16).view(np.uint8), (n_blocks, 2))
    return np.hstack((scales, quants)).reshape(n_rows, -1)


def draw_super_blocks(
    generator: np.random.Generator, n_rows: int, n_in: int, kind: GGMLQuantizationType, std: float
) -> NDArray[np.uint8]:
    """Random rows of Q4_K or Q6_K. Source of layouts: ggml-common.h, block_q4_K and block_q6_K."""
    n_blocks = n_rows * n_in // 256

    def halves(*values: float) -> NDArray[np.uint8]:
        return np.broadcast_to(np.array(values, np.float16).view(np.uint8), (n_blocks, 2 * len(values)))

    if kind == GGMLQuantizationType.Q4_K:  # d * 32 * q - dmin * 32 with q of 0..15, of mean 7.5 and std 4.61
        scale = std / 4.61 / 32
        # Eight scales and eight minima of 32, in six bits each: their low four bits are zero in the last four bytes.
        packed = np.broadcast_to(np.array([32 | 2 << 6] * 8 + [0] * 4, np.uint8), (n_blocks, 12))
        quants = generator.integers(0, 256, (n_blocks, 128), np.uint8)
        blocks = (halves(scale, 7.5 * scale), packed, quants)
    else:  # d * 32 * (q - 32) with q of 0..63, of mean -0.5 and std 18.47
        quants = generator.integers(0, 256, (n_blocks, 192), np.uint8)
        blocks = (quants, np.full((n_blocks, 16), 32, np.uint8), halves(std / 18.47 / 32))
    return np.hstack(blocks).reshape(n_rows, -1)


def write_gguf(path: Path, writer: GGUFWriter, tensors: list[Tensor], seed: int) -> None:
    """Writes `writer`'s metadata and the tensors, drawn from `seed`, to `path`: whole or not at all."""
    for tensor in tensors:
        size = tensor.n_out * tensor.row_bytes
        # One row is a vector: GGUF knows norms by that.
        shape = (tensor.n_in,) if tensor.gain is None else (tensor.n_out, tensor.n_in)
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.float32), size, raw_dtype=tensor.type)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    writer.write_header_to_file(part)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    generator = np.random.default_rng(seed)
    with part.open("ab") as file:
        for tensor in tensors:
            file.write(bytes(-file.tell() % ALIGNMENT))
            for piece in tensor.pieces(generator):
                piece.tofile(file)
        file.write(bytes(-file.tell() % ALIGNMENT))
    part.replace(path)


# Those of Gemma's 48 HTML tags that open; each closes too.
TAGS = (
    *("table", "caption", "thead", "tbody", "tfoot", "tr", "th", "td", "h1", "h2", "h3", "h4", "h5", "h6"),
    *("blockquote", "strong", "em", "b", "i", "u", "s", "sub", "sup", "code"),
)


def vocabulary(n_vocab: int) -> tuple[list[str], list[float], list[int]]:
    """Pieces, scores and types in Gemma's layout, its learnt pieces being numbers after a space."""
    control = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<2mass>", "[@BOS@]"]
    control += [f"<unused{i}>" for i in range(99)] + ["<start_of_turn>", "<end_of_turn>"]
    whole = ["\n" * n for n in range(1, 32)] + ["▁" * n for n in range(2, 32)]
    whole += [f"<{slash}{tag}>" for slash in ("", "/") for tag in TAGS]
    octets = [f"<0x{octet:02X}>" for octet in range(256)]
    # " 123" is merged character by character, so each beginning of a word must be a piece: of numbers it is.
    characters = ["▁", *(chr(code) for code in range(33, 127))]
    n_words = n_vocab - FIRST_WORD_ID - len(characters) - 1
    learnt = [f"▁{word}" for word in range(n_words)] + characters
    pieces = control + whole + octets + learnt + ["<unused99>"]
    scores = [0.0] * FIRST_WORD_ID + [-float(rank) for rank in range(len(learnt))] + [0.0]
    types = [TokenType.CONTROL] * len(control) + [TokenType.USER_DEFINED] * len(whole)
    types += [TokenType.BYTE] * len(octets) + [TokenType.NORMAL] * len(learnt) + [TokenType.CONTROL]
    types[3] = TokenType.UNKNOWN
    return pieces, scores, [int(kind) for kind in types]


def type_of(shape: Shape, type_name: str, name: str, n_in: int) -> GGMLQuantizationType:
    """The type of a matrix: one for all, or the converter's choice in a mixed type."""
    if type_name != MIXED_TYPE:
        return TYPES[type_name]
    hyperparameters = Hyperparameters(
        shape.n_blocks,
        shape.width,
        shape.feed_forward,
        shape.n_heads,
        shape.n_kv_heads,
        shape.head_width,
        shape.n_vocab,
        N_CTX,
        NORM_EPSILON,
    )
    return GGMLQuantizationType(Mix(MODEL_TYPES[type_name], hyperparameters).type_of(name, (1, n_in)))


def write_model(path: Path, shape: Shape, type_name: str) -> None:
    """Writes the base model. Source of the keys: llama.cpp src/llama-model.cpp and src/llama-vocab.cpp."""
    writer = GGUFWriter(None, "gemma")
    writer.add_type("model")
    writer.add_name(f"random weights, {path.stem}")
    writer.add_context_length(N_CTX)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.n_blocks)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.n_heads)
    writer.add_head_count_kv(shape.n_kv_heads)
    writer.add_layer_norm_rms_eps(NORM_EPSILON)
    writer.add_key_length(shape.head_width)
    writer.add_value_length(shape.head_width)
    writer.add_file_type(FILE_TYPES[type_name])
    writer.add_quantization_version(2)
    pieces, scores, types = vocabulary(shape.n_vocab)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(pieces)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_pad_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_unk_token_id(3)
    writer.add_eot_token_id(107)
    writer.add_add_bos_token(True)  # noqa: FBT003 -- gguf's own signature
    writer.add_add_eos_token(False)  # noqa: FBT003
    writer.add_add_space_prefix(False)  # noqa: FBT003

    def norm(name: str, fill: float = 1.0) -> Tensor:
        return Tensor(name, 1, shape.width, GGMLQuantizationType.F32, gain=None, fill=fill)

    words = range(FIRST_WORD_ID, shape.n_vocab - 1)
    kind = type_of(shape, type_name, "token_embd.weight", shape.width)
    embedding = Tensor("token_embd.weight", shape.n_vocab, shape.width, kind, gain=EMBEDDING_GAIN, rows=words)
    tensors = [embedding, norm("output_norm.weight", OUTPUT_NORM)]
    for block in range(shape.n_blocks):
        tensors += [norm(f"blk.{block}.attn_norm.weight"), norm(f"blk.{block}.ffn_norm.weight")]
    for name, n_out, n_in in shape.weights():
        tensors.append(Tensor(name, n_out, n_in, type_of(shape, type_name, name, n_in), gain=WEIGHT_GAIN))
    write_gguf(path, writer, tensors, seed=0)


def write_adapter(path: Path, shape: Shape, rank: int, type_name: str, seed: int) -> None:
    """Writes an adapter of every matrix, alpha = rank. B is F16 where `rank` is not a multiple of the block size."""
    writer = GGUFWriter(None, "gemma")
    writer.add_type("adapter")
    writer.add_name(f"random adapter {path.stem}")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(rank))
    kind_a = TYPES[type_name]
    kind_b = kind_a if rank % GGML_QUANT_SIZES[kind_a][0] == 0 else GGMLQuantizationType.F16
    tensors = []
    for name, n_out, n_in in shape.weights():
        tensors.append(Tensor(f"{name}.lora_a", rank, n_in, kind_a, gain=ADAPTER_GAIN))
        tensors.append(Tensor(f"{name}.lora_b", n_out, rank, kind_b, gain=ADAPTER_GAIN))
    write_gguf(path, writer, tensors, seed)


def model_path(folder: Path, shape_name: str, type_name: str) -> Path:
    """The path of the model of this shape, which is written first if it is missing."""
    path = folder / f"{shape_name}-{type_name}.gguf"
    if not path.exists():
        print(f"writing {path}", file=sys.stderr)
        write_model(path, SHAPES[shape_name], type_name)
    return path


def adapter_folder(folder: Path, shape_name: str, n_adapters: int, rank: int, type_name: str = "f16") -> Path:
    """A folder with exactly `n_adapters` adapters 001.gguf, 002.gguf and so on; missing ones are written first."""
    target = folder / f"{shape_name}-r{rank}-{type_name}-x{n_adapters}"
    paths = {number: target / f"{number:03d}.gguf" for number in range(1, n_adapters + 1)}
    missing = [number for number, path in paths.items() if not path.exists()]
    if missing:
        print(f"writing {len(missing)} adapters to {target}", file=sys.stderr)
    for number in missing:
        write_adapter(paths[number], SHAPES[shape_name], rank, type_name, seed=number)
    return target


def main() -> None:
    """Parses the command line and writes what is asked for and not there yet."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("folder", nargs="?", type=Path, default=DEFAULT_FOLDER, help="default: %(default)s")
    parser.add_argument("--shape", choices=SHAPES, default="2b", help="default: %(default)s")
    parser.add_argument(
        "--type", choices=FILE_TYPES, default="q4_0", help="of the model's weights; default: %(default)s"
    )
    parser.add_argument("--adapters", type=int, default=0, metavar="N", help="write N adapters too; default: none")
    parser.add_argument("--rank", type=int, default=16, help="of the adapters; default: %(default)s")
    parser.add_argument("--adapter-type", choices=("f32", "f16", "q8_0"), default="f16", help="default: %(default)s")
    asked = parser.parse_args()
    if asked.adapters < 0 or asked.rank < 1:
        parser.error("--adapters must be 0 or more and --rank 1 or more")
    print(model_path(asked.folder, asked.shape, asked.type))
    if asked.adapters:
        print(adapter_folder(asked.folder, asked.shape, asked.adapters, asked.rank, asked.adapter_type))


if __name__ == "__main__":
    main()
