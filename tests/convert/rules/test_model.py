"""Each model file that llama.cpp would abort on, or quietly misread, is refused by name before it sees the file."""

from pathlib import Path

import numpy as np
import pytest

from convert.errors import RejectedModel
from convert.gguf.header import ValueType
from convert.gguf.types import GgmlType
from convert.rules.check import validate_model
from tests.convert.plans import ARRAY, STRING, U32, Change, drop, filled, put, retensor, token, token_type, write_base

CASES: dict[str, tuple[Change, str]] = {
    "another architecture": (put("general.architecture", STRING, "llama"), "general.architecture is 'llama'"),
    "architecture a number": (put("general.architecture", U32, 1), "general.architecture must be the string 'gemma'"),
    "no architecture": (drop("general.architecture"), "general.architecture must be the string"),
    "an adapter": (put("general.type", STRING, "adapter"), "is a LoRA adapter, not a base model"),
    "a part of a split": (put("split.count", ValueType.UINT16, 3), "join the parts"),
    "another tokenizer": (put("tokenizer.ggml.model", STRING, "gpt2"), "tokenizer.ggml.model is 'gpt2'"),
    "no block count": (drop("gemma.block_count"), "gemma.block_count must be a UINT32"),
    "block count u64": (put("gemma.block_count", ValueType.UINT64, 2), "gemma.block_count must be a UINT32"),
    "block count absurd": (put("gemma.block_count", U32, 1 << 23), "8388608 blocks, but only 20 tensors"),
    "no key length": (drop("gemma.attention.key_length"), "gemma.attention.key_length must be"),
    "key and value differ": (put("gemma.attention.value_length", U32, 64), "key_length and .value_length differ"),
    "no epsilon": (drop("gemma.attention.layer_norm_rms_epsilon"), "rms_epsilon must be a float"),
    "epsilon NaN": (
        put("gemma.attention.layer_norm_rms_epsilon", ValueType.FLOAT32, float("nan")),
        "rms_epsilon must be a float above 0",
    ),
    "rope base 0": (put("gemma.rope.freq_base", ValueType.FLOAT32, 0.0), "rope.freq_base must be a float above 0"),
    "rope width 0": (put("gemma.rope.dimension_count", U32, 0), "rope.dimension_count must be 128, as gemma.attention"),
    "rope width odd": (put("gemma.rope.dimension_count", U32, 3), "rope.dimension_count must be 128"),
    "rope width absurd": (put("gemma.rope.dimension_count", U32, 100_000), "rope.dimension_count must be 128"),
    "rope scaling unknown": (
        put("gemma.rope.scaling.type", STRING, "longrope"),
        "rope.scaling.type must be 'none' or 'linear'",
    ),
    "experts": (put("gemma.expert_count", U32, 8), "gemma.expert_count must be 0"),
    "experts used": (put("gemma.expert_used_count", U32, 2), "gemma.expert_used_count must be 0"),
    "layers that predict more": (put("gemma.nextn_predict_layers", U32, 1), "nextn_predict_layers must be 0"),
    "a key of Gemma 2": (put("gemma.attn_logit_softcapping", ValueType.FLOAT32, 50.0), "is not part of a gemma model"),
    "no causal attention": (put("gemma.attention.causal", ValueType.BOOL, False), "attention.causal must be true"),
    "another vocabulary size": (put("gemma.vocab_size", U32, 7), "gemma.vocab_size must be 1024"),
    "eot beyond the vocabulary": (put("tokenizer.ggml.eot_token_id", U32, 5000), "eot_token_id must be a UINT32 from"),
    "an unknown tokenizer key": (put("tokenizer.ggml.suppress_tokens", U32, 1), "is not part of a gemma model"),
    "too small an alignment": (put("general.alignment", U32, 16), "general.alignment must be a multiple of 32"),
    "extra tensors": (put("general.tensor_extra.name", STRING, "x"), "is not part of a gemma model"),
    "a NUL in a token": (token(600, b"a\0b"), "holds b'a\\\\x00b' as token 600"),
    "an empty token": (token(600, b""), "holds b'' as token 600"),
    "no tokens": (drop("tokenizer.ggml.tokens"), "tokenizer.ggml.tokens must be an array of STRING"),
    "scores too short": (
        put("tokenizer.ggml.scores", ARRAY, np.zeros(1000, np.float32)),
        "tokenizer.ggml.scores has 1000 items for 1024 tokens",
    ),
    "types too short": (
        put("tokenizer.ggml.token_type", ARRAY, np.zeros(7, np.int32)),
        "tokenizer.ggml.token_type has 7 items",
    ),
    "scores no floats": (
        put("tokenizer.ggml.scores", ARRAY, np.zeros(1024, np.int32)),
        "tokenizer.ggml.scores must be an array of FLOAT32",
    ),
    "token twice": (token(600, b"<bos>"), "holds the same text twice"),
    "byte missing": (token(217, b"other"), "lacks the byte token <0x00>"),
    "bos beyond the vocabulary": (put("tokenizer.ggml.bos_token_id", U32, 1024), "bos_token_id is 1024, not from 0"),
    "no eos": (drop("tokenizer.ggml.eos_token_id"), "eos_token_id is None"),
    "space prefix": (
        put("tokenizer.ggml.add_space_prefix", ValueType.BOOL, True),
        "add_space_prefix must be false",
    ),
    "tensor missing": (retensor(lambda tensors: tensors[:-1]), "'output_norm.weight' is missing"),
    "tensor too many": (
        retensor(lambda tensors: [*tensors, filled("output.weight", GgmlType.F16, (1024, 256))]),
        "'output.weight' is not part of architecture gemma",
    ),
    "tensor of another shape": (
        retensor(lambda tensors: [filled(tensors[0].name, GgmlType.F16, (1000, 256)), *tensors[1:]]),
        r"'token_embd.weight' has shape \[1000, 256\], but the model needs \[1024, 256\]",
    ),
    "a norm in F16": (
        retensor(lambda tensors: [*tensors[:-1], filled("output_norm.weight", GgmlType.F16, (256,))]),
        "vector 'output_norm.weight' has type F16, but must be F32",
    ),
    "integers": (
        retensor(lambda tensors: [filled(tensors[0].name, GgmlType.I32, (1024, 256)), *tensors[1:]]),
        "'token_embd.weight' has type I32",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_refuses_by_name(case: str, tmp_path: Path) -> None:
    """Each broken rule is refused in one line that names the file, the key or tensor, and the rule."""
    change, words = CASES[case]
    path = write_base(tmp_path / "model.gguf", change, type_name="q8_0")
    with pytest.raises(RejectedModel, match=words) as caught:
        validate_model(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_sound_model_is_summed_up(base_gguf: Path) -> None:
    """The summary of a sound model has its shapes, parameters and types."""
    summary = validate_model(base_gguf)
    h = summary.hyperparameters
    assert (h.n_layers, h.n_embd, h.n_ff, h.n_heads, h.n_kv_heads, h.head_dim) == (2, 256, 512, 2, 1, 128)
    assert (summary.n_parameters, summary.types, summary.has_chat_template) == (1_443_072, ("F32",), True)


NORMAL = 1
WARNED: dict[str, tuple[tuple[Change, ...], str]] = {
    "no space key": ((drop("tokenizer.ggml.add_space_prefix"),), "add_space_prefix is missing"),
    "turn tokens NORMAL": ((token_type(NORMAL, 106, 107),), "does not mark <start_of_turn> as a control token"),
    "another template": ((put("tokenizer.chat_template", STRING, "<|im_start|>"),), "chat_template is not Gemma's"),
    "turn tokens renamed": (
        (token(106, b"<|im_start|>"), token(107, b"<|im_end|>")),
        "the vocabulary has no <start_of_turn> and no <end_of_turn>: chat is refused",
    ),
}


@pytest.mark.parametrize("case", WARNED)
def test_warns_of_what_would_spoil_answers(case: str, tmp_path: Path) -> None:
    """A file that can be served, but not as other files are, is accepted with a warning that says what and why."""
    changes, words = WARNED[case]
    summary = validate_model(write_base(tmp_path / "model.gguf", *changes, type_name="q8_0"))
    assert any(words in warning for warning in summary.warnings), summary.warnings
    assert summary.has_turn_tokens is (case != "turn tokens renamed")


def test_a_usual_file_has_no_warning(base_gguf: Path) -> None:
    """What the converter itself writes gives nothing to warn of."""
    assert validate_model(base_gguf).warnings == ()


def test_a_hollow_file_is_warned_of(base_gguf: Path, tmp_path: Path) -> None:
    """A model file whose second half is zeros has a sound header, and matrices that hold nothing."""
    path, content = tmp_path / "half.gguf", base_gguf.read_bytes()
    path.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    (warning,) = validate_model(path).warnings
    assert "of its matrices look like nothing but zeros" in warning
