"""Every reader of untrusted bytes as a fuzz target: any input is read or refused with our own error, quickly.

The normal tests run each target on a few hundred seeded mutations. For a long, coverage-guided run:

    pip install atheris
    python -m tests.convert.fuzz_long TARGET CORPUS_DIRECTORY -runs=50000 -rss_limit_mb=600 -timeout=10
"""

import atexit
import math
import random
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType

from convert.adapters.adapter import plan_adapter
from convert.adapters.open import open_adapter
from convert.checkpoint.base import promised_header
from convert.checkpoint.checkpoint import Checkpoint
from convert.checkpoint.config import read_hyperparameters
from convert.checkpoint.tokenizer import read_vocabulary
from convert.commands.inspection import inspect
from convert.conversion.conversion import Options, convert_adapter
from convert.errors import ConvertError
from convert.gguf.quantisers import Ggml
from convert.gguf.writer import encode_header
from convert.models.imatrix import read_importance
from convert.models.plan import architecture_metadata
from convert.rules.check import validate_adapter, validate_model
from convert.rules.gemma import Hyperparameters
from convert.tensors.encoder import Encoder
from convert.tensors.safetensors import SafetensorsFile
from tests.convert.checkpoints import checkpoint, peft
from tests.convert.gguf_bytes import (
    ARRAY,
    BOOL,
    F32,
    I32,
    STRING,
    U32,
    Gguf,
    Tensor,
    adapter,
    entry,
    f32,
    pair,
    string,
    text,
)
from tests.convert.variants import mlx
from tests.tiny_gemma.files import ADAPTERS, BASE

BASE_HEADER = promised_header(BASE)
SCRATCH = Path(tempfile.mkdtemp(prefix="fuzz-"))
atexit.register(shutil.rmtree, SCRATCH, ignore_errors=True)
GGML = Ggml()
Q8_0 = 8


def _file(name: str, content: bytes) -> Path:
    path = SCRATCH / name
    path.write_bytes(content)
    return path


def _folder(name: str, build: Callable[[Path], object]) -> Path:
    directory = SCRATCH / name
    if not directory.exists():
        build(directory)
    return directory


def safetensors(content: bytes) -> None:
    """Read the header and every row of a safetensors file."""
    with SafetensorsFile(_file("x.safetensors", content)) as file:
        for name, tensor in file.tensors.items():
            if tensor.shape and 0 not in tensor.shape:
                file.read(name)


def gguf_adapter(content: bytes) -> None:
    """Validate and inspect a GGUF adapter."""
    path = _file("adapter.gguf", content)
    inspect(path)
    validate_adapter(path, BASE_HEADER)


def gguf_model(content: bytes) -> None:
    """Validate and inspect a GGUF model."""
    path = _file("model.gguf", content)
    inspect(path)
    validate_model(path)


def imatrix(content: bytes) -> None:
    """Read an importance matrix."""
    read_importance(_file("imatrix.gguf", content), {"blk.0.attn_q.weight": (256, 256)}, GGML)


def _open(directory: Path) -> None:
    with open_adapter(directory, BASE_HEADER, GGML) as opened, Encoder(GGML) as encoder:
        plan = plan_adapter(opened, BASE_HEADER, "q8_0", encoder)
        encode_header(plan.metadata, plan.tensors)
        for tensor in plan.tensors[:2]:
            list(tensor.chunks())


def peft_config(content: bytes) -> None:
    """Read a PEFT adapter with this configuration."""
    directory = _folder("peft", lambda path: peft(path, "tag"))
    (directory / "adapter_config.json").write_bytes(content)
    _open(directory)


def peft_weights(content: bytes) -> None:
    """Read a PEFT adapter with these weights."""
    directory = _folder("weights", lambda path: peft(path, "tag"))
    (directory / "adapter_model.safetensors").write_bytes(content)
    _open(directory)


def mlx_config(content: bytes) -> None:
    """Read an MLX adapter with this configuration."""
    directory = _folder("mlx", mlx)
    (directory / "adapter_config.json").write_bytes(content)
    _open(directory)


def config(content: bytes) -> None:
    """Read a checkpoint's configuration."""
    directory = _folder("config", Path.mkdir)
    (directory / "config.json").write_bytes(content)
    encode_header(architecture_metadata(read_hyperparameters(directory)), [])


def index(content: bytes) -> None:
    """Open a checkpoint with this index of shards."""
    directory = _folder("index", checkpoint)
    (directory / "model.safetensors.index.json").write_bytes(content)
    Checkpoint(directory).__exit__()


def _tokenizer(name: str, content: bytes) -> None:
    directory = _folder(name, checkpoint)
    if name == "tokenizer.json":
        (directory / "tokenizer.model").unlink(missing_ok=True)
    (directory / name).write_bytes(content)
    encode_header(read_vocabulary(directory, 1024).metadata(), [])


def tokenizer_model(content: bytes) -> None:
    """Read a SentencePiece model."""
    _tokenizer("tokenizer.model", content)


def tokenizer_json(content: bytes) -> None:
    """Read a tokenizer.json."""
    _tokenizer("tokenizer.json", content)


def tokenizer_config(content: bytes) -> None:
    """Read a tokenizer_config.json."""
    _tokenizer("tokenizer_config.json", content)


def gguf_source(content: bytes) -> None:
    """Convert a GGUF adapter to another type: what passes the rules must also convert."""
    source, output = _file("source.gguf", content), SCRATCH / "output.gguf"
    convert_adapter(source, BASE, output, Options("q8_0", force=True))


def _model_seed() -> bytes:
    """A whole model of 28 KB that keeps every rule: one layer of width 32, and little more than the byte tokens."""
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    n_vocab, width = len(tokens), 32
    entries = [string("general.architecture", "gemma"), string("tokenizer.ggml.model", "llama")]
    numbers = {"context_length": 64, "embedding_length": width, "block_count": 1, "feed_forward_length": width}
    numbers |= {"attention.head_count": 1, "attention.head_count_kv": 1}
    numbers |= {"attention.key_length": width, "attention.value_length": width}
    entries += [entry(f"gemma.{key}", U32, struct.pack("<I", value)) for key, value in numbers.items()]
    entries.append(f32("gemma.attention.layer_norm_rms_epsilon", 1e-6))
    texts = b"".join(text(token) for token in tokens)
    entries.append(entry("tokenizer.ggml.tokens", ARRAY, struct.pack("<IQ", STRING, n_vocab) + texts))
    for key, kind in (("scores", F32), ("token_type", I32)):
        values = struct.pack("<IQ", kind, n_vocab) + bytes(4 * n_vocab)
        entries.append(entry(f"tokenizer.ggml.{key}", ARRAY, values))
    entries += [entry(f"tokenizer.ggml.{r}_token_id", U32, struct.pack("<I", i)) for r, i in (("bos", 2), ("eos", 1))]
    entries.append(entry("tokenizer.ggml.add_space_prefix", BOOL, b"\0"))
    shapes = Hyperparameters(1, width, width, 1, 1, width, n_vocab, 64, 1e-6).tensor_shapes()
    vectors = [Tensor(name, shape) for name, shape in shapes.items() if len(shape) == 1]
    matrices = [
        Tensor(name, shape[::-1], Q8_0, bytes(34 * math.prod(shape) // 32))
        for name, shape in shapes.items()
        if len(shape) == 2
    ]
    return Gguf(entries, vectors + matrices).bytes()


TAG = ADAPTERS["tag"]
SOUND_ADAPTER = adapter(*pair(rank=1)).bytes()


def _seeds() -> dict[str, tuple[Callable[[bytes], None], bytes]]:
    sums, count = Tensor("blk.0.attn_q.weight.in_sum2", (256, 1)), Tensor("blk.0.attn_q.weight.counts", (1, 1))
    return {
        "safetensors": (safetensors, (TAG / "adapter_model.safetensors").read_bytes()[:6000]),
        "gguf_adapter": (gguf_adapter, SOUND_ADAPTER),
        "gguf_source": (gguf_source, SOUND_ADAPTER),
        "gguf_model": (gguf_model, _model_seed()),
        "imatrix": (imatrix, Gguf([string("general.type", "imatrix")], [sums, count]).bytes()),
        "peft_config": (peft_config, (TAG / "adapter_config.json").read_bytes()),
        "peft_weights": (peft_weights, (TAG / "adapter_model.safetensors").read_bytes()),
        "mlx_config": (mlx_config, (mlx(SCRATCH / "mlx-seed") / "adapter_config.json").read_bytes()),
        "config": (config, (BASE / "config.json").read_bytes()),
        "index": (index, b'{"weight_map": {"model.norm.weight": "model.safetensors"}}'),
        "tokenizer_model": (tokenizer_model, (BASE / "tokenizer.model").read_bytes()),
        "tokenizer_json": (tokenizer_json, (BASE / "tokenizer.json").read_bytes()),
        "tokenizer_config": (tokenizer_config, (BASE / "tokenizer_config.json").read_bytes()),
    }


TARGETS = MappingProxyType(_seeds())
"""Name -> the target and a sound input to start from."""


def survive(target: Callable[[bytes], None], content: bytes) -> None:
    """Run a target; only our own errors may come out of it, each one line."""
    try:
        target(content)
    except ConvertError as error:
        if "\n" in str(error):
            raise ValueError("an error of several lines") from error


def mutations(seed: bytes, n_inputs: int, chance: random.Random) -> list[bytes]:
    """Mutate a sound input: bytes, lengths, cuts, repeats, and odd JSON values."""
    odd = [b"null", b"-1", b"1e999", b"[]", b"{}", b'""', b"9" * 400, b"\xff", b'"a"', b"true", b"18446744073709551615"]
    made = [b"", seed]
    for _ in range(n_inputs):
        content = bytearray(seed)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(content) + 1)
            match chance.randrange(6):
                case 0 if at < len(content):
                    content[at] = chance.randrange(256)
                case 1:
                    content[at : at + 8] = chance.choice([0, 1, 1 << 31, 1 << 62, (1 << 64) - 1]).to_bytes(8, "little")
                case 2:
                    del content[at:]
                case 3:
                    del content[at : at + chance.randint(1, 40)]
                case 4:
                    content[at:at] = content[at : at + chance.randint(1, 200)]
                case _:
                    end = max(at, content.find(b",", at), content.find(b"}", at))
                    content[at:end] = chance.choice(odd)
        made.append(bytes(content))
    return made
