"""Every form of a Gemma checkpoint gives the same model; every other checkpoint is refused with its remedy."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from convert.conversion.conversion import Options, convert_model
from convert.errors import (
    BadValue,
    ConvertError,
    LfsPointer,
    MalformedJson,
    MalformedSafetensors,
    MissingFile,
    NotARegularFile,
    QuantizedSource,
    TensorMismatch,
    UnsafeFile,
    UnsupportedModel,
)
from convert.gguf.header import read_header
from convert.gguf.quantisers import Ggml
from convert.tensors.gguf import GgufRows, OpenGguf
from tests.convert.checkpoints import base_tensors, bf16, checkpoint, write_tensors
from tests.convert.digests import tensor_digest
from tests.tiny_gemma.files import ADAPTERS

F32 = Options("f32")


def converted(directory: Path, options: Options = F32) -> Path:
    """Convert a checkpoint beside itself; return the GGUF."""
    path = directory.parent / "result.gguf"
    convert_model(directory, path, options)
    return path


def sharded(directory: Path) -> Path:
    """Save the tiny Gemma in three shards with an index."""
    tensors = base_tensors()
    checkpoint(directory, {})
    (directory / "model.safetensors").unlink()
    weight_map: dict[str, str] = {}
    for number, part in enumerate(np.array_split(sorted(tensors), 3), 1):
        name = f"model-{number:05d}-of-00003.safetensors"
        write_tensors(directory / name, {key: bf16(tensors[key]) for key in part})
        weight_map |= dict.fromkeys(part.tolist(), name)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return directory


def _renamed(directory: Path, rename: Callable[[str], str]) -> Path:
    return checkpoint(directory, {rename(key): value for key, value in base_tensors().items()})


def _hub(directory: Path) -> Path:
    """Lay the checkpoint out as huggingface_hub's cache does: blobs, and links to them."""
    snapshot = checkpoint(directory / "snapshots" / "0123abc")
    (directory / "refs").mkdir()
    (directory / "blobs").mkdir()
    for path in snapshot.iterdir():
        path.rename(directory / "blobs" / path.name)
        path.symlink_to(directory / "blobs" / path.name)
    return directory


def _with_mark(directory: Path) -> Path:
    path = directory / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    return directory


FORMS: dict[str, Callable[[Path], Path]] = {
    "f32": lambda path: checkpoint(path, base_tensors()),
    "sharded": sharded,
    "tied head saved too": lambda path: checkpoint(
        path, (tensors := base_tensors()) | {"lm_head.weight": tensors["model.embed_tokens.weight"]}
    ),
    "names without model.": lambda path: checkpoint(
        path, {key.removeprefix("model."): value for key, value in base_tensors().items()}
    ),
    "rotary buffers": lambda path: checkpoint(
        path, base_tensors() | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(64, np.float32)}
    ),
    "only the head of the tied pair": lambda path: checkpoint(
        path,
        {key.replace("model.embed_tokens", "lm_head"): value for key, value in base_tensors().items()},
    ),
    "torch.compile": lambda path: _renamed(path, lambda key: f"_orig_mod.{key}"),
    "DataParallel": lambda path: _renamed(path, lambda key: f"module.{key}"),
    "FSDP and checkpointing": lambda path: _renamed(
        path,
        lambda key: key.replace("model.layers.1.", "_fsdp_wrapped_module.model.layers.1._checkpoint_wrapped_module."),
    ),
    "model twice": lambda path: _renamed(path, lambda key: f"model.{key}"),
    "a stale quantization_config": lambda path: checkpoint(path, quantization_config={"quant_method": "bitsandbytes"}),
    "a folder of the Hugging Face cache": _hub,
    "config with a byte order mark": lambda path: _with_mark(checkpoint(path)),
    "config of transformers 4": lambda path: checkpoint(
        path, rope_parameters=None, dtype=None, torch_dtype="bfloat16", rope_theta=10000.0, hidden_act="gelu"
    ),
    "shards without an index": lambda path: _without_index(sharded(path)),
}


def _without_index(directory: Path) -> Path:
    (directory / "model.safetensors.index.json").unlink()
    return directory


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_model(form: str, tmp_path: Path, base_gguf: Path) -> None:
    """Shards, dtypes, spellings and a saved copy of the tied head make no difference."""
    assert tensor_digest(converted(FORMS[form](tmp_path / "model"))) == tensor_digest(base_gguf)


def test_f16_norms_are_added_in_f32(tmp_path: Path) -> None:
    """The 1 that Gemma adds to its norms is added in F32, not in the file's F16."""
    tensors = {key: value.astype(np.float16) for key, value in base_tensors().items()}
    tensors["model.norm.weight"][:] = np.float16(0.0003)
    with OpenGguf(converted(checkpoint(tmp_path / "model", tensors))) as gguf:
        norm = GgufRows(gguf, "output_norm.weight", Ggml()).read(0, 1)
    assert (norm == np.float32(1.0) + np.float32(np.float16(0.0003))).all()


def test_rope_is_written_where_it_differs(tmp_path: Path, base_gguf: Path) -> None:
    """Theta and linear scaling, in the spelling of transformers 4 and of 5; nothing for the usual ones."""
    assert not any(".rope." in key for key in read_header(base_gguf).metadata)
    new = checkpoint(tmp_path / "new", rope_parameters={"rope_theta": 1e6, "rope_type": "linear", "factor": 4.0})
    old = checkpoint(
        tmp_path / "old", rope_parameters=None, rope_theta=1e6, rope_scaling={"type": "linear", "factor": 4.0}
    )
    for directory in (new, old):
        header = read_header(converted(directory, Options("f32", force=True)))
        assert header.number("gemma.rope.freq_base") == 1e6
        assert header.string("gemma.rope.scaling.type") == "linear"
        assert header.number("gemma.rope.scaling.factor") == 4.0


def test_more_rows_than_pieces_are_filled_up(tmp_path: Path) -> None:
    """A resized embedding gets unused tokens, so that llama.cpp's vocabulary has its size."""
    tensors = base_tensors()
    embedding = tensors["model.embed_tokens.weight"]
    tensors["model.embed_tokens.weight"] = np.vstack([embedding, np.zeros((8, 256), np.float32)])
    path = tmp_path / "result.gguf"
    summary = convert_model(checkpoint(tmp_path / "model", tensors, vocab_size=1032), path, F32)
    assert summary.hyperparameters.n_vocab == 1032


def _with_file(directory: Path, name: str, content: bytes) -> Path:
    checkpoint(directory)
    (directory / name).write_bytes(content)
    return directory


def _quantised(directory: Path, **config: object) -> Path:
    """Save one weight as bytes, as quantisers do, and say so in the configuration."""
    return checkpoint(directory, base_tensors() | {Q_NAME: np.ones((256, 256), np.uint8)}, **config)


def _pickled(directory: Path) -> Path:
    checkpoint(directory)
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    return directory


def _shardless(directory: Path) -> Path:
    sharded(directory)
    (directory / "model-00002-of-00003.safetensors").unlink()
    return directory


def _cut(directory: Path) -> Path:
    checkpoint(directory)
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return directory


def _replaced(directory: Path, make: Callable[[Path], object]) -> Path:
    checkpoint(directory)
    (directory / "model.safetensors").unlink()
    make(directory / "model.safetensors")
    return directory


NAN = base_tensors()["model.norm.weight"] * np.float32(math.nan)
HUGE = np.full((256, 256), 1e6, np.float32)
Q_NAME = "model.layers.0.self_attn.q_proj.weight"
REFUSED: dict[str, tuple[Callable[[Path], Path], type[ConvertError], str]] = {
    "git-lfs": (
        lambda p: _with_file(p, "model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n"),
        LfsPointer,
        "git lfs pull",
    ),
    "config git-lfs": (
        lambda p: _with_file(p, "config.json", b"version https://git-lfs.github.com/spec/v1\n"),
        LfsPointer,
        "git lfs pull",
    ),
    "bitsandbytes config": (
        lambda p: _quantised(p, quantization_config={"quant_method": "bitsandbytes"}),
        QuantizedSource,
        r"already quantised \(bitsandbytes\); convert the original",
    ),
    "gptq": (lambda p: _quantised(p, quantization_config={"quant_method": "gptq"}), QuantizedSource, "gptq"),
    "awq": (lambda p: _quantised(p, quantization_config={"quant_method": "awq"}), QuantizedSource, "awq"),
    "fp8": (lambda p: _quantised(p, quantization_config={"quant_method": "fp8"}), QuantizedSource, "fp8"),
    "mlx 4 bit": (lambda p: _quantised(p, quantization={"bits": 4}), QuantizedSource, r"quantised \(MLX\)"),
    "bitsandbytes names": (
        lambda p: checkpoint(p, base_tensors() | {f"{Q_NAME}.absmax": np.ones(4, np.float32)}),
        QuantizedSource,
        "absmax' belongs to quantised weights",
    ),
    "8 bit names": (
        lambda p: checkpoint(p, base_tensors() | {"model.layers.0.mlp.up_proj.SCB": np.ones(4, np.float32)}),
        QuantizedSource,
        "SCB' belongs to quantised weights",
    ),
    "u8 weights": (
        lambda p: checkpoint(p, base_tensors() | {Q_NAME: np.ones((256, 256), np.uint8)}),
        QuantizedSource,
        "has type U8; give the original",
    ),
    "another architecture": (
        lambda p: checkpoint(p, architectures=["Gemma2ForCausalLM"], model_type="gemma2"),
        UnsupportedModel,
        "architecture Gemma2ForCausalLM; only GemmaForCausalLM",
    ),
    "no architecture": (
        lambda p: checkpoint(p, architectures=None, model_type=None),
        UnsupportedModel,
        "architecture unknown",
    ),
    "activation": (lambda p: checkpoint(p, hidden_act="silu"), UnsupportedModel, "activation 'silu'"),
    "rope scaling": (
        lambda p: checkpoint(p, rope_parameters={"rope_type": "yarn", "factor": 4.0}),
        UnsupportedModel,
        "rope scaling 'yarn'",
    ),
    "untied head": (
        lambda p: checkpoint(p, base_tensors() | {"lm_head.weight": np.ones((1024, 256), np.float32)}),
        UnsupportedModel,
        "lm_head.weight differs from embed_tokens",
    ),
    "missing tensor": (
        lambda p: checkpoint(p, {k: v for k, v in base_tensors().items() if k != Q_NAME}),
        TensorMismatch,
        "'blk.0.attn_q.weight' is missing",
    ),
    "unknown tensor": (
        lambda p: checkpoint(p, base_tensors() | {"vision.weight": np.ones(4, np.float32)}),
        TensorMismatch,
        "'vision.weight': a weight of a model that sees",
    ),
    "wrong vocab_size": (lambda p: checkpoint(p, vocab_size=1000), TensorMismatch, "token_embd.weight' has shape"),
    "wrong head_dim": (lambda p: checkpoint(p, head_dim=None), TensorMismatch, "attn_"),
    "layer too many": (
        lambda p: checkpoint(p, num_hidden_layers=3),
        TensorMismatch,
        "'blk.2.attn_q.weight' is missing",
    ),
    "NaN": (lambda p: checkpoint(p, base_tensors() | {"model.norm.weight": NAN}), BadValue, "holds NaN or infinity"),
    "missing shard": (_shardless, MissingFile, "this shard is named in model.safetensors.index.json but not there"),
    "no weights": (lambda p: _replaced(p, lambda _: None), MissingFile, "the weights are missing"),
    "no tokenizer": (
        lambda p: _replaced(
            p, lambda f: [f.parent.joinpath("tokenizer.model").unlink(), write_tensors(f, base_tensors())]
        ),
        MissingFile,
        "neither tokenizer.model nor tokenizer.json",
    ),
    "pickle": (
        _pickled,
        UnsafeFile,
        r"only there as pytorch_model\.bin, a pickle.*save it as safetensors",
    ),
    "truncated": (_cut, MalformedSafetensors, "ends at byte"),
    "weights are a directory": (lambda p: _replaced(p, Path.mkdir), NotARegularFile, "not a regular file"),
    "config no JSON": (lambda p: _with_file(p, "config.json", b"{"), MalformedJson, "not valid JSON"),
    "config a list": (lambda p: _with_file(p, "config.json", b"[]"), MalformedJson, "a JSON object is needed"),
    "config too deep": (lambda p: _with_file(p, "config.json", b"[" * 500_000), MalformedJson, "nested too deeply"),
    "config key twice": (lambda p: _with_file(p, "config.json", b'{"a":1,"a":2}'), MalformedJson, "'a' occurs twice"),
    "config NaN": (lambda p: _with_file(p, "config.json", b'{"a":NaN}'), MalformedJson, "NaN is not JSON"),
    "hidden_size text": (lambda p: checkpoint(p, hidden_size="256"), MalformedJson, "hidden_size must be a number"),
    "hidden_size absurd": (lambda p: checkpoint(p, hidden_size=1 << 60), MalformedJson, "hidden_size must be a number"),
    "epsilon absurd": (lambda p: checkpoint(p, rms_norm_eps=1e300), MalformedJson, "rms_norm_eps must be a number"),
    "theta absurd": (
        lambda p: checkpoint(p, rope_parameters={"rope_theta": 1e300}),
        MalformedJson,
        "rope_theta must be",
    ),
    "theta true": (lambda p: checkpoint(p, rope_parameters={"rope_theta": True}), MalformedJson, "rope_theta must be"),
    "shard outside": (
        lambda p: _with_file(p, "model.safetensors.index.json", b'{"weight_map": {"a": "../secret.safetensors"}}'),
        MissingFile,
        "secret",
    ),
    "an adapter": (
        lambda p: shutil.copytree(ADAPTERS["tag"], p),
        MissingFile,
        "an adapter, not a model",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_with_the_remedy(case: str, tmp_path: Path) -> None:
    """The error is one line that names the file and what to do, and no file is left behind."""
    build, error, words = REFUSED[case]
    directory = build(tmp_path / "model")
    output = tmp_path / "out"
    output.mkdir()
    with pytest.raises(error, match=words) as caught:
        convert_model(directory, output / "base.gguf", F32)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    assert list(output.iterdir()) == []


def test_a_value_too_large_for_the_type_is_refused(tmp_path: Path) -> None:
    """A value above 65504 is refused for F16, and the message names wider types."""
    directory = checkpoint(tmp_path / "model", base_tensors() | {Q_NAME: HUGE})
    with pytest.raises(BadValue, match=r"1e\+06 does not fit F16; use bf16 or f32"):
        converted(directory, Options("f16"))
    convert_model(directory, tmp_path / "fits.gguf", Options("bf16"))
