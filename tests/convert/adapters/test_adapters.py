"""Every dialect and spelling of an adapter gives the same GGUF; what no GGUF adapter can hold is refused by name."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from convert.commands.arguments import main
from convert.conversion.conversion import Options, convert_adapter, convert_model
from convert.errors import (
    BadValue,
    ConvertError,
    LfsPointer,
    MalformedJson,
    MalformedSafetensors,
    MissingFile,
    RejectedAdapter,
    RejectedModel,
    TensorMismatch,
    UnsafeFile,
    UnsupportedAdapter,
)
from convert.gguf.header import read_header
from tests.convert.checkpoints import Array, adapter_tensors, base_tensors, bf16, checkpoint, peft, write_tensors
from tests.convert.digests import tensor_digest
from tests.convert.variants import mlx

F32 = Options("f32")
PREFIX = "base_model.model.model."
Q = PREFIX + "layers.0.self_attn.q_proj."
NORM = PREFIX + "layers.0.input_layernorm."
EMBEDDING, HEAD = PREFIX + "embed_tokens.", "base_model.model.lm_head."
TOKENS = EMBEDDING + "token_adapter.trainable_tokens_delta"


def digest(source: Path, base: Path, options: Options = F32) -> str:
    """Convert an adapter and return the digest of its tensors."""
    path = source.parent / f"{source.name}.result.gguf"
    convert_adapter(source, base, path, options)
    return tensor_digest(path)


@pytest.fixture(scope="session")
def plain_digest(base_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny `shout` in F32."""
    return digest(peft(tmp_path_factory.mktemp("plain") / "shout", "shout"), base_gguf)


def renamed(directory: Path, rename: Callable[[str], str]) -> Path:
    """Save `shout` under other keys."""
    return peft(directory, "shout", {rename(key): value for key, value in adapter_tensors("shout").items()})


def untouched(side: str) -> dict[str, Array]:
    """The base's embedding, as PEFT saves it beside a LoRA."""
    return {side + "weight": base_tensors()["model.embed_tokens.weight"]}


def with_mark(directory: Path) -> Path:
    """Save the configuration with a byte order mark, as some editors do."""
    path = directory / "adapter_config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    return directory


SPELLINGS: dict[str, Callable[[Path], Path]] = {
    "adapter's name in the key": lambda p: renamed(
        p, lambda k: k.replace(".lora_A.weight", ".lora_A.default.weight").replace("B.weight", "B.default.weight")
    ),
    "no prefix": lambda p: renamed(p, lambda k: k.removeprefix("base_model.model.")),
    "one prefix": lambda p: renamed(p, lambda k: k.replace("base_model.model.model.", "base_model.model.")),
    "language model": lambda p: renamed(p, lambda k: k.replace("model.layers", "language_model.model.layers")),
    "the untouched base beside it": lambda p: peft(
        p,
        "shout",
        adapter_tensors("shout") | {"base_model.model.lm_head.base_layer.weight": np.ones((4, 4), np.float32)},
    ),
    "torch.compile": lambda p: renamed(p, lambda k: k.replace("base_model.model.", "base_model.model._orig_mod.")),
    "torch.compile inside": lambda p: renamed(p, lambda k: k.replace("self_attn.", "self_attn._orig_mod.")),
    "DataParallel": lambda p: renamed(p, lambda k: f"module.{k}"),
    "FSDP and checkpointing": lambda p: renamed(
        p, lambda k: k.replace("model.layers.1.", "_fsdp_wrapped_module.model.layers.1._checkpoint_wrapped_module.")
    ),
    "five prefixes": lambda p: renamed(p, lambda k: f"model.model.{k}"),
    "the base's embedding beside it": lambda p: peft(p, "shout", adapter_tensors("shout") | untouched(EMBEDDING)),
    "the base's embedding and head beside it": lambda p: peft(
        p, "shout", adapter_tensors("shout") | untouched(EMBEDDING) | untouched(HEAD), modules_to_save=["embed_tokens"]
    ),
    "modules_to_save that are not saved": lambda p: peft(p, "shout", modules_to_save=["lm_head"]),
    "trained tokens that are not saved": lambda p: peft(p, "shout", trainable_token_indices=[5]),
    "model_type null": lambda p: peft(p, "shout", model_type=None),
    "switches null": lambda p: peft(p, "shout", use_rslora=None, use_dora=None, bias=None),
    "a note that nobody knows": lambda p: peft(p, "shout", trained_by="me", steps=300, use_thora=False),
    "a byte order mark": lambda p: with_mark(peft(p, "shout")),
    "made for workers ai": lambda p: peft(p, "shout", model_type="gemma"),
    "lora_alpha a float": lambda p: peft(p, "shout", lora_alpha=16.0),
    "all-linear": lambda p: peft(p, "shout", target_modules="all-linear"),
    "mlx": mlx,
    "mlx checkpoint file": lambda p: (mlx(p) / "adapters.safetensors").rename(p / "0000100_adapters.safetensors"),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_the_same_adapter(spelling: str, tmp_path: Path, base_gguf: Path, plain_digest: str) -> None:
    """Key prefixes, MLX's transposed halves and harmless extras make no difference."""
    assert digest(SPELLINGS[spelling](tmp_path / "adapter"), base_gguf) == plain_digest


def test_bf16_and_f16_weights_are_read_exactly(tmp_path: Path, base_gguf: Path) -> None:
    """A mix of source types is fine; each is widened exactly."""
    tensors = adapter_tensors("tag")
    for i, (key, values) in enumerate(tensors.items()):
        tensors[key] = values.astype(np.float16).astype(np.float32) if i % 2 else (values * 0 + np.float32(0.375))
    mixed = {k: v.astype(np.float16) if i % 2 else bf16(v) for i, (k, v) in enumerate(tensors.items())}
    wide = digest(peft(tmp_path / "wide", "tag", tensors), base_gguf)
    assert digest(peft(tmp_path / "mixed", "tag", mixed), base_gguf) == wide


@pytest.mark.parametrize(
    ("rank", "type_name", "types"),
    [
        (8, "q8_0", {"Q8_0", "F16"}),
        (32, "q8_0", {"Q8_0"}),
        (8, "q4_0", {"Q4_0", "F16"}),
        (16, "q4_0", {"Q4_0"}),
        (8, "q4_k", {"Q4_K", "F16"}),
        (8, "bf16", {"BF16"}),
    ],
)
def test_types_follow_the_rank(rank: int, type_name: str, types: set[str], tmp_path: Path, base_gguf: Path) -> None:
    """B is quantised only where its rows are whole blocks, or where padding them still saves."""
    random = np.random.default_rng(0)
    tensors = {
        Q + "lora_A.weight": random.standard_normal((rank, 256)).astype(np.float32),
        Q + "lora_B.weight": random.standard_normal((256, rank)).astype(np.float32),
    }
    source, path = peft(tmp_path / "adapter", "tag", tensors, r=rank, lora_alpha=rank), tmp_path / "x.gguf"
    summary = convert_adapter(source, base_gguf, path, Options(type_name))
    assert set(summary.types) == types
    padded = 32 if (rank, type_name) == (16, "q4_0") else rank
    assert (summary.max_rank, summary.alpha) == (padded, float(padded))


def test_the_base_is_recorded(tmp_path: Path, base_gguf: Path, adapters_dir: Path) -> None:
    """The digest of the base file stands in the adapter."""
    path = tmp_path / "x.gguf"
    summary = convert_adapter(adapters_dir / "tag", base_gguf, path, F32)
    record = json.loads((base_gguf.parent / f"{base_gguf.name}.json").read_text())
    assert summary.base_sha256 == record["output"]["sha256"]


def test_mlx_legacy_alpha(tmp_path: Path, base_gguf: Path, plain_digest: str) -> None:
    """Between January and June 2024 mlx-lm multiplied by alpha / rank; only the flag makes it so."""
    source, path = mlx(tmp_path / "mlx", scale=1.0, alpha=16.0), tmp_path / "x.gguf"
    assert convert_adapter(source, base_gguf, path, F32).alpha == 8.0
    legacy = Options("f32", force=True, is_legacy_alpha=True)
    assert convert_adapter(source, base_gguf, path, legacy).alpha == 16.0
    assert tensor_digest(path) == plain_digest


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora", "loftq", "corda"])
def test_warns_of_inits_that_change_the_base(init: str, tmp_path: Path, base_gguf: Path) -> None:
    """An init that changes the base gives a warning: the adapter is right only on the changed base."""
    path = tmp_path / "x.gguf"
    convert_adapter(peft(tmp_path / "adapter", "tag", init_lora_weights=init), base_gguf, path, F32)
    (warning,) = json.loads((tmp_path / "x.gguf.json").read_text())["warnings"]
    assert init in warning


def extra(key: str, shape: tuple[int, ...] = (4,)) -> dict[str, Array]:
    """The tensors of `tag` with one more."""
    return adapter_tensors("tag") | {key: np.ones(shape, np.float32)}


def _config(directory: Path, content: bytes) -> Path:
    peft(directory, "tag")
    (directory / "adapter_config.json").write_bytes(content)
    return directory


def _weights(directory: Path, content: bytes) -> Path:
    peft(directory, "tag")
    (directory / "adapter_model.safetensors").write_bytes(content)
    return directory


def _pickled(directory: Path) -> Path:
    peft(directory, "tag")
    (directory / "adapter_model.safetensors").rename(directory / "adapter_model.bin")
    return directory


def _shapes(directory: Path, a: tuple[int, int], b: tuple[int, int], **config: object) -> Path:
    tensors = {Q + "lora_A.weight": np.ones(a, np.float32), Q + "lora_B.weight": np.ones(b, np.float32)}
    return peft(directory, "tag", tensors, **config)


def _with_magnitudes(directory: Path) -> Path:
    tensors = _q_only() | {Q + "lora_magnitude_vector": np.ones(256, np.float32)}
    return peft(directory, "tag", tensors, use_dora=True)


def _q_only() -> dict[str, Array]:
    return {key: value for key, value in adapter_tensors("tag").items() if key.startswith(Q)}


CONFIGS = {
    "lora_bias": (True, "a bias beside the LoRA"),
    "invocation_string": ("<start_of_turn>model", "aLoRA\\) of the old form; add alora_invocation_tokens"),
    "target_parameters": (["w"], "bare parameters"),
    "layer_replication": ([[0, 2]], "another model than the base"),
    "fan_in_fan_out": (True, "transposed weights"),
    "megatron_config": ({"a": 1}, "Megatron"),
    "use_qalora": (True, "QALoRA"),
    "use_bdlora": (True, "block-diagonal"),
    "arrow_config": ({"a": 1}, "Arrow"),
    "kasa_config": ({"a": 1}, "KaSA"),
    "velora_config": ({"a": 1}, "VeLoRA"),
    "monteclora_config": ({"a": 1}, "MonteCLoRA"),
}
METHODS = ("LOHA", "LOKR", "IA3", "OFT", "BOFT", "VERA", "ADALORA", "PREFIX_TUNING", "PROMPT_TUNING", "XLORA", None)
Case = tuple[Callable[[Path], Path], type[ConvertError], str]
REFUSED: dict[str, Case] = {
    "DoRA": (
        _with_magnitudes,
        UnsupportedAdapter,
        "a DoRA cannot be a GGUF adapter; write a whole base with it: gemlane",
    ),
    "DoRA without magnitudes": (
        lambda p: peft(p, "tag", use_dora=True),
        TensorMismatch,
        "a DoRA, but 'blk.0.ffn_down.weight' has no magnitudes",
    ),
    "DoRA by half": (
        lambda p: peft(p, "tag", extra(Q + "lora_magnitude_vector", (256,))),
        TensorMismatch,
        "has no magnitudes",
    ),
    "MLX DoRA by half": (
        lambda p: _mlx_with(p, "layers.0.self_attn.q_proj.m", (256,)),
        TensorMismatch,
        "has no magnitudes",
    ),
    "MLX DoRA without magnitudes": (
        lambda p: _mlx_config(p, fine_tune_type="dora"),
        TensorMismatch,
        "a DoRA, but",
    ),
    "a norm twice": (
        lambda p: peft(p, "tag", extra(NORM + "weight", (256,)) | extra(NORM + "modules_to_save.weight", (256,))),
        TensorMismatch,
        "'blk.0.attn_norm.weight' is there twice",
    ),
    "trained norm": (
        lambda p: peft(p, "tag", extra(NORM + "weight", (256,))),
        UnsupportedAdapter,
        "trained norms cannot be a GGUF adapter; write a whole base with it: gemlane merge",
    ),
    "trained norm, unsaved form": (
        lambda p: peft(p, "tag", extra(NORM + "modules_to_save.default.weight", (256,))),
        UnsupportedAdapter,
        "trained norms",
    ),
    "half a LoRA on the embedding": (
        lambda p: peft(p, "tag", extra(EMBEDDING + "lora_embedding_A", (8, 1024))),
        TensorMismatch,
        "'embed_tokens' has only one half of a LoRA",
    ),
    "LoRA on the embedding": (
        lambda p: peft(
            p, "tag", extra(EMBEDDING + "lora_embedding_A", (8, 1024)) | extra(EMBEDDING + "lora_embedding_B", (256, 8))
        ),
        UnsupportedAdapter,
        "a trained embedding or head cannot be a GGUF adapter; write a whole base with it: gemlane merge",
    ),
    "LoRA on the head": (
        lambda p: peft(p, "tag", extra(HEAD + "lora_A.weight", (8, 256)) | extra(HEAD + "lora_B.weight", (1024, 8))),
        UnsupportedAdapter,
        "a trained embedding or head",
    ),
    "trained head": (
        lambda p: peft(p, "tag", extra(HEAD + "weight", (1024, 256))),
        UnsupportedAdapter,
        "a trained embedding or head",
    ),
    "trained embedding": (
        lambda p: peft(p, "tag", extra(EMBEDDING + "weight", (1024, 256))),
        UnsupportedAdapter,
        "a trained embedding or head",
    ),
    "new tokens": (
        lambda p: peft(p, "tag", extra(EMBEDDING + "weight", (1026, 256))),
        UnsupportedAdapter,
        "a trained embedding or head",
    ),
    "an embedding of another width": (
        lambda p: peft(p, "tag", extra(EMBEDDING + "weight", (1024, 128))),
        TensorMismatch,
        "an embedding of \\[1024, 128\\], but the base has \\[1024, 256\\]",
    ),
    "an embedding of fewer tokens": (
        lambda p: peft(p, "tag", extra(EMBEDDING + "weight", (1000, 256))),
        TensorMismatch,
        "an embedding of \\[1000, 256\\]",
    ),
    "trained tokens": (
        lambda p: peft(p, "tag", extra(TOKENS, (2, 256)), trainable_token_indices=[4, 5]),
        UnsupportedAdapter,
        "a trained embedding or head",
    ),
    "trained tokens without ids": (
        lambda p: peft(p, "tag", extra(TOKENS, (2, 256)), trainable_token_indices=[4]),
        TensorMismatch,
        "trainable_token_indices names 1 tokens",
    ),
    "trained tokens beyond the rows": (
        lambda p: peft(p, "tag", extra(TOKENS, (2, 256)), trainable_token_indices=[4, 1024]),
        TensorMismatch,
        "token 1024 was trained, but the embedding has only 1024 rows",
    ),
    "trained token ids no numbers": (
        lambda p: peft(p, "tag", trainable_token_indices=["<tool>"]),
        MalformedJson,
        "must be a list of token ids",
    ),
    "trained tokens of head and embedding differ": (
        lambda p: peft(p, "tag", trainable_token_indices={"embed_tokens": [4], "lm_head": [5]}),
        UnsupportedAdapter,
        "other tokens in the head than in the embedding",
    ),
    "a switch that is a number": (
        lambda p: peft(p, "tag", use_rslora=1),
        MalformedJson,
        "use_rslora must be true or false, but is 1",
    ),
    "a switch that is a text": (
        lambda p: peft(p, "tag", use_rslora="true"),
        MalformedJson,
        "use_rslora must be true or false, but is 'true'",
    ),
    "DoRA a text": (
        lambda p: peft(p, "tag", use_dora="true"),
        MalformedJson,
        "use_dora must be true or false, but is 'true'",
    ),
    "an unknown switch": (
        lambda p: peft(p, "tag", use_thora=True),
        UnsupportedAdapter,
        "use_thora is switched on, and this version does not know what it does",
    ),
    "an unknown way": (
        lambda p: peft(p, "tag", thora_config={"rank": 2}),
        UnsupportedAdapter,
        "thora_config is switched on",
    ),
    "an unknown claim": (lambda p: peft(p, "tag", is_thora=True), UnsupportedAdapter, "is_thora is switched on"),
    "a classifier's head": (
        lambda p: peft(p, "tag", extra("base_model.model.score.weight", (2, 256))),
        UnsupportedAdapter,
        "the head of a classifier; gemlane serves models that generate text",
    ),
    "bias of B": (
        lambda p: peft(p, "tag", extra(Q + "lora_B.bias", (256,))),
        UnsupportedAdapter,
        "trained biases",
    ),
    "bias all": (lambda p: peft(p, "tag", bias="all"), UnsupportedAdapter, "bias 'all': trained biases"),
    "unknown tensor": (
        lambda p: peft(p, "tag", extra(PREFIX + "vision.weight")),
        UnsupportedAdapter,
        "not a LoRA tensor of a weight of Gemma",
    ),
    "another model_type": (lambda p: peft(p, "tag", model_type="llama"), UnsupportedAdapter, "model_type 'llama'"),
    "runaway pattern": (
        lambda p: peft(p, "tag", alpha_pattern={"(a+)+$": 4}),
        UnsupportedAdapter,
        "too intricate; name the modules",
    ),
    "broken pattern": (lambda p: peft(p, "tag", rank_pattern={"(": 4}), UnsupportedAdapter, "too intricate"),
    "MLX full fine-tune": (
        lambda p: _mlx_config(p, fine_tune_type="full"),
        UnsupportedAdapter,
        "fine_tune_type 'full'; fuse it",
    ),
    "MLX embedding": (
        lambda p: _mlx_with(p, "embed_tokens.lora_a", (1024, 8)),
        UnsupportedAdapter,
        "no LoRA tensor of one of Gemma's seven|not a LoRA tensor",
    ),
    "MLX without scale": (lambda p: mlx(p, scale=None), MalformedJson, "lora_parameters.scale must be a number"),  # type: ignore[arg-type]
    "MLX without parameters": (lambda p: _mlx_config(p, lora_parameters=3), MalformedJson, "must be an object"),
    "pickle": (_pickled, UnsafeFile, r"only there as adapter_model\.bin, a pickle.*never opened"),
    "no weights": (
        lambda p: next(f.unlink() or p for f in [peft(p, "tag") / "adapter_model.safetensors"]),
        MissingFile,
        "the adapter's weights are missing",
    ),
    "no config": (checkpoint, MissingFile, "a model, not an adapter; use `gemlane convert model` for it"),
    "invocation tokens a text": (
        lambda p: peft(p, "tag", alora_invocation_tokens="now"),
        MalformedJson,
        "alora_invocation_tokens must be a list of at most 256",
    ),
    "invocation tokens too many": (
        lambda p: peft(p, "tag", alora_invocation_tokens=[1] * 257),
        MalformedJson,
        "alora_invocation_tokens must be a list of at most 256",
    ),
    "invocation token negative": (
        lambda p: peft(p, "tag", alora_invocation_tokens=[5, -1]),
        MalformedJson,
        "must hold token ids, not -1",
    ),
    "invocation token true": (
        lambda p: peft(p, "tag", alora_invocation_tokens=[True]),
        MalformedJson,
        "must hold token ids, not True",
    ),
    "invocation token too large": (
        lambda p: peft(p, "tag", alora_invocation_tokens=[1 << 31]),
        MalformedJson,
        "must hold token ids, not 2147483648",
    ),
    "invocation token beyond the base": (
        lambda p: peft(p, "tag", alora_invocation_tokens=[1024]),
        RejectedAdapter,
        "holds 1024, but the base has 1024 tokens",
    ),
    "r text": (lambda p: peft(p, "tag", r="8"), MalformedJson, "r must be a number"),
    "lora_alpha 0": (lambda p: peft(p, "tag", lora_alpha=0), MalformedJson, "lora_alpha must be a number above 0"),
    "lora_alpha text": (lambda p: peft(p, "tag", lora_alpha="16"), MalformedJson, "lora_alpha"),
    "alpha_pattern a list": (lambda p: peft(p, "tag", alpha_pattern=[1]), MalformedJson, "alpha_pattern must be"),
    "config no JSON": (lambda p: _config(p, b"\xff"), MalformedJson, "not valid JSON"),
    "config with half a character": (
        lambda p: peft(p, "tag", base_model_name_or_path="\ud800"),
        MalformedJson,
        "surrogates not allowed",
    ),
    "config too deep": (lambda p: _config(p, b'{"a":' * 200_000), MalformedJson, "nested too deeply"),
    "config too large": (lambda p: _config(p, b" " * (2 << 20)), ConvertError, "at most 1048576 are read"),
    "weights git-lfs": (lambda p: _weights(p, b"version https://git-lfs.github.com/spec/v1\n"), LfsPointer, "git lfs"),
    "weights empty": (lambda p: _weights(p, b""), MalformedSafetensors, "but an empty file"),
    "header lies": (lambda p: _weights(p, b"\xff" * 8 + b"{}"), MalformedSafetensors, "claims a header of"),
    "half a pair": (
        lambda p: peft(p, "tag", {k: v for k, v in adapter_tensors("tag").items() if k != Q + "lora_B.weight"}),
        TensorMismatch,
        "only one of lora_A and lora_B",
    ),
    "ranks differ": (lambda p: _shapes(p, (8, 256), (256, 4)), TensorMismatch, "has lora_A"),
    "rank against the config": (lambda p: _shapes(p, (4, 256), (256, 4)), TensorMismatch, "configuration says 8"),
    "wider base": (lambda p: _shapes(p, (8, 2048), (2048, 8)), TensorMismatch, r"weight of \[2048, 2048\]"),
    "deeper base": (
        lambda p: renamed(p, lambda k: k.replace("layers.1.", "layers.7.")),
        TensorMismatch,
        "'blk.7.attn_k.weight' does not exist in the base|does not exist in the base",
    ),
    "NaN": (
        lambda p: peft(
            p, "tag", adapter_tensors("tag") | {Q + "lora_A.weight": np.full((8, 256), math.nan, np.float32)}
        ),
        BadValue,
        "holds NaN or infinity",
    ),
    "empty": (lambda p: peft(p, "tag", {}), UnsupportedAdapter, "holds no LoRA tensors"),
    "a GGUF that is none": (lambda p: _gguf(p, b"GGUF" + bytes(60)), ConvertError, "version 0"),
}
REFUSED |= {
    f"peft_type {method}": (
        lambda p, method=method: peft(p, "tag", peft_type=method),  # type: ignore[misc]
        UnsupportedAdapter,
        f"peft_type {method!r}; only LORA",
    )
    for method in METHODS
}
REFUSED |= {
    f"config {key}": (
        lambda p, key=key, value=value: peft(p, "tag", **{key: value}),  # type: ignore[misc]
        UnsupportedAdapter,
        words,
    )
    for key, (value, words) in CONFIGS.items()
}


def _mlx_config(directory: Path, **config: object) -> Path:
    path = mlx(directory) / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return directory


def _mlx_with(directory: Path, name: str, shape: tuple[int, ...]) -> Path:
    mlx(directory)
    tensors = {"model." + name: np.ones(shape, np.float32)}
    for key, values in adapter_tensors("shout").items():
        short = key.removeprefix("base_model.model.").removesuffix(".weight").replace("lora_A", "lora_a")
        tensors[short.replace("lora_B", "lora_b")] = np.ascontiguousarray(values.T)
    write_tensors(directory / "adapters.safetensors", tensors)
    return directory


def _gguf(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_by_name(case: str, tmp_path: Path, base_gguf: Path) -> None:
    """Each refusal is one line that names the file and the reason or the remedy, and leaves nothing behind."""
    build, error, words = REFUSED[case]
    source = build(tmp_path / "adapter")
    output = tmp_path / "out"
    output.mkdir()
    with pytest.raises(error, match=words) as caught:
        convert_adapter(source, base_gguf, output / "x.gguf", F32)
    assert "\n" not in str(caught.value)
    assert list(output.iterdir()) == []


def test_names_of_any_kind_are_written(tmp_path: Path, base_gguf: Path) -> None:
    """Characters beyond the BMP are kept; bytes of a folder's name that are not text become question marks."""
    source = peft(tmp_path / os.fsdecode(b"bad-\xff"), "tag", base_model_name_or_path="\U0001f600")
    path = tmp_path / "x.gguf"
    convert_adapter(source, base_gguf, path, F32)
    header = read_header(path)
    assert header.string("general.name") == "bad-?"
    assert header.string("general.base_model.0.name") == "\U0001f600"


def test_a_factor_beyond_float32_is_refused(tmp_path: Path, base_gguf: Path) -> None:
    """Differing alphas are folded into B, which must stay finite."""
    tensors = adapter_tensors("tag")
    tensors[Q + "lora_B.weight"][:] = 3e38
    source = peft(tmp_path / "huge", "tag", tensors, alpha_pattern={"k_proj": 8, "q_proj": 800})
    with pytest.raises(BadValue, match="B times 100: the result is too large"):
        convert_adapter(source, base_gguf, tmp_path / "x.gguf", F32)


def test_a_base_must_be_a_gemma(tmp_path: Path, base_gguf: Path, adapters_dir: Path) -> None:
    """An adapter given as --base is refused, and so is a model of another architecture."""
    path = tmp_path / "tag.gguf"
    convert_adapter(adapters_dir / "tag", base_gguf, path, F32)
    with pytest.raises(RejectedModel, match="an adapter, not a base"):
        convert_adapter(adapters_dir / "tag", path, tmp_path / "x.gguf", F32)


def test_a_gguf_adapter_is_checked_before_it_is_stored_again(
    tmp_path: Path, base_gguf: Path, adapters_dir: Path
) -> None:
    """A GGUF adapter with an infinite value is refused as a source, by the same rules as a result."""
    path = tmp_path / "tag.gguf"
    convert_adapter(adapters_dir / "tag", base_gguf, path, F32)
    content = bytearray(path.read_bytes())
    tensor = read_header(path).tensors["blk.0.attn_q.weight.lora_a"]
    content[tensor.offset : tensor.offset + 4] = np.array([np.inf], np.float32).tobytes()
    path.write_bytes(content)
    with pytest.raises(RejectedAdapter, match="holds NaN or infinity"):
        convert_adapter(path, base_gguf, tmp_path / "x.gguf", F32)


@pytest.mark.parametrize("kind", ["f32", "q8_0"])
def test_an_alora_keeps_its_invocation_tokens(kind: str, tmp_path: Path, base_gguf: Path) -> None:
    """Invocation tokens survive PEFT to GGUF and GGUF to GGUF; an empty list and null mean a plain LoRA, as in PEFT."""
    first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
    source = peft(tmp_path / "alora", "tag", alora_invocation_tokens=[106, 970], invocation_string="now")
    assert convert_adapter(source, base_gguf, first, Options(kind)).invocation_tokens == (106, 970)
    assert convert_adapter(first, base_gguf, second, F32).invocation_tokens == (106, 970)
    unset: list[list[int] | None] = [[], None]
    for tokens in unset:
        plain = peft(tmp_path / "plain", "tag", alora_invocation_tokens=tokens)
        assert convert_adapter(plain, base_gguf, second, Options("f32", force=True)).invocation_tokens == ()


@pytest.mark.parametrize("type_name", ["f32", "bf16", "q8_0", "q4_k_m", "checkpoint"])
@pytest.mark.parametrize("is_trained", [False, True])
def test_an_untouched_embedding_is_harmless_on_any_base(
    is_trained: bool, type_name: str, tmp_path: Path, checkpoint_dir: Path
) -> None:
    """An embedding saved beside the LoRA is compared with the base's, within the rounding of the base's type."""
    base = checkpoint_dir
    if type_name != "checkpoint":
        base = tmp_path / "base.gguf"
        convert_model(checkpoint_dir, base, Options(type_name))
    saved = untouched(EMBEDDING)
    if is_trained:
        saved[EMBEDDING + "weight"][700] *= np.float32(1.5)
    source, path = peft(tmp_path / "adapter", "tag", adapter_tensors("tag") | saved), tmp_path / "x.gguf"
    if not is_trained:
        assert convert_adapter(source, base, path, F32).n_pairs == 14
        return
    with pytest.raises(UnsupportedAdapter, match="a trained embedding or head cannot be a GGUF adapter"):
        convert_adapter(source, base, path, F32)


def test_unknown_and_unsaved_things_are_warned_of(tmp_path: Path, base_gguf: Path) -> None:
    """Keys that this version does not know, and modules whose training was not saved, are named."""
    source = peft(tmp_path / "adapter", "tag", modules_to_save=["lm_head"], trained_by="me", steps=300)
    convert_adapter(source, base_gguf, tmp_path / "x.gguf", F32)
    warnings = json.loads((tmp_path / "x.gguf.json").read_text())["warnings"]
    assert [words for words in ("steps, trained_by", "modules_to_save names lm_head") if words in str(warnings)] == [
        "steps, trained_by",
        "modules_to_save names lm_head",
    ]


def test_every_key_of_peft_itself_is_known(tmp_path: Path, base_gguf: Path, adapters_dir: Path) -> None:
    """A configuration as PEFT 0.21 writes it, with every key that its LoraConfig has, gives no warning."""
    config = json.loads((adapters_dir / "tag" / "adapter_config.json").read_text())
    assert len(config) > 35
    convert_adapter(adapters_dir / "tag", base_gguf, tmp_path / "x.gguf", F32)
    assert json.loads((tmp_path / "x.gguf.json").read_text())["warnings"] == []


@pytest.mark.parametrize("type_name", ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_k"])
def test_an_adapter_that_changes_nothing_is_warned_of(type_name: str, tmp_path: Path, base_gguf: Path) -> None:
    """B starts as zeros, so an adapter saved before it was trained changes nothing; one trained pair is enough."""
    tensors = {key: values * ("lora_A" in key) for key, values in adapter_tensors("tag").items()}
    options, path = Options(type_name, force=True), tmp_path / "x.gguf"
    untrained = convert_adapter(peft(tmp_path / "untrained", "tag", tensors), base_gguf, path, options)
    assert "it changes nothing" in untrained.warnings[0]
    assert "it changes nothing" in json.loads((tmp_path / "x.gguf.json").read_text())["warnings"][0]
    tensors[Q + "lora_B.weight"][7] = np.float32(0.25)
    trained = convert_adapter(peft(tmp_path / "trained", "tag", tensors), base_gguf, path, options)
    assert trained.warnings == ()


def test_an_adapter_for_another_gemma_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """CodeGemma has the shapes of Gemma, so the names are compared; convert and inspect warn."""
    base, path = checkpoint(tmp_path / "gemma-7b-it"), tmp_path / "x.gguf"
    source = peft(tmp_path / "a", "tag", base_model_name_or_path="google/codegemma-7b-it")
    words = "made for google/codegemma-7b-it, but the base is gemma-7b-it"
    assert convert_adapter(source, base, path, F32).warnings == (words,)
    convert_model(base, tmp_path / "base.gguf", Options("q8_0"))
    assert main(["inspect", str(path), "--base", str(tmp_path / "base.gguf")]) == 0
    assert words in capsys.readouterr().out
