"""Merges that cannot be exact are refused; the arithmetic of exact ones is in test_logits."""

import json
from pathlib import Path

import numpy as np
import pytest
from llama_cpp import Llama

from convert.conversion.conversion import Options, merge
from convert.errors import BadValue, InvalidOption, TensorMismatch, UnsupportedAdapter
from convert.gguf.quantisers import Ggml
from convert.tensors.gguf import GgufRows, OpenGguf
from convert.tensors.safetensors import SafetensorsFile
from tests.convert.checkpoints import adapter_tensors, base_tensors, peft
from tests.convert.variants import EMBEDDING, HEAD, MERGES
from tests.tiny_gemma.files import BASE

F32 = Options("f32")
Q = "base_model.model.model.layers.0.self_attn.q_proj."
DORA, NORMS = MERGES["merged_dora"][0][0], MERGES["merged_norms"][0][0]


def test_a_plain_merge_is_the_sum(tmp_path: Path, adapters_dir: Path) -> None:
    """A merged weight is W + scale * alpha / rank * B @ A, computed chunk by chunk in float32."""
    path = tmp_path / "merged.gguf"
    merge(BASE, [(adapters_dir / "tag", 0.25), (adapters_dir / "shout", -1.0)], path, F32)
    wanted = base_tensors()["model.layers.0.self_attn.q_proj.weight"].copy()
    for style, factor in (("tag", 0.5), ("shout", -2.0)):
        tensors = adapter_tensors(style)
        wanted += np.float32(factor) * (tensors[Q + "lora_B.weight"] @ tensors[Q + "lora_A.weight"])
    with OpenGguf(path) as gguf:
        found = GgufRows(gguf, "blk.0.attn_q.weight", Ggml()).read(0, 256)
    assert np.allclose(found, wanted, atol=1e-6)


def test_a_scaled_norm_is_refused(tmp_path: Path) -> None:
    """A merge with a scale refuses a norm that was trained whole, since it has no scale."""
    with pytest.raises(UnsupportedAdapter, match=r"cannot be scaled by 0\.5"):
        merge(BASE, [(NORMS(tmp_path / "norms"), 0.5)], tmp_path / "x.gguf", F32)


def test_an_alora_is_refused(tmp_path: Path) -> None:
    """A merge refuses an activated LoRA: it changes some tokens only, and merged weights would change them all."""
    part = (peft(tmp_path / "alora", "tag", alora_invocation_tokens=[106]), 1.0)
    with pytest.raises(UnsupportedAdapter, match="applies to some tokens only, so it cannot be merged"):
        merge(BASE, [part], tmp_path / "x.gguf", F32)


def test_a_norm_trained_twice_is_refused(tmp_path: Path) -> None:
    """Two adapters cannot both replace one norm."""
    parts = [(NORMS(tmp_path / name), 1.0) for name in ("a", "b")]
    with pytest.raises(UnsupportedAdapter, match="trained whole by another adapter"):
        merge(BASE, parts, tmp_path / "x.gguf", F32)


def test_magnitudes_of_another_shape_are_refused(tmp_path: Path) -> None:
    """Magnitudes of another number than the rows of the weight are refused."""
    tensors = {key: value for key, value in adapter_tensors("tag").items() if key.startswith(Q)}
    tensors[Q + "lora_magnitude_vector"] = np.ones(3, np.float32)
    with pytest.raises(TensorMismatch, match=r"magnitudes of \[3\]"):
        merge(BASE, [(peft(tmp_path / "dora", "tag", tensors, use_dora=True), 1.0)], tmp_path / "x.gguf", F32)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 1e9])
def test_an_absurd_scale_is_refused(scale: float, tmp_path: Path, adapters_dir: Path) -> None:
    """A scale of NaN, infinity or a billion is refused."""
    with pytest.raises(InvalidOption, match="cannot be merged"):
        merge(BASE, [(adapters_dir / "tag", scale)], tmp_path / "x.gguf", F32)


def test_a_dora_of_scale_one_is_itself(tmp_path: Path) -> None:
    """A merged DoRA of scale 1 has rows of exactly the trained lengths."""
    path = tmp_path / "merged.gguf"
    source = DORA(tmp_path / "dora")
    merge(BASE, [(source, 1.0)], path, F32)
    with SafetensorsFile(source / "adapter_model.safetensors") as file, OpenGguf(path) as gguf:
        rows = GgufRows(gguf, "blk.0.attn_q.weight", Ggml()).read(0, 256)
        assert np.allclose(np.linalg.norm(rows, axis=1), file.read(Q + "lora_magnitude_vector"), rtol=1e-5)


def test_a_change_beyond_float32_is_refused(tmp_path: Path) -> None:
    """Finite halves whose product is not finite are refused before a quantiser gets the product."""
    tensors = adapter_tensors("tag")
    tensors[Q + "lora_A.weight"][:] = 1e30
    tensors[Q + "lora_B.weight"][:] = 1e30
    source = peft(tmp_path / "huge", "tag", tensors)
    with pytest.raises(BadValue, match="too large for float32"):
        merge(BASE, [(source, 1.0)], tmp_path / "x.gguf", Options("q4_k_m"))


def test_embedding_and_head_trained_apart_are_refused(tmp_path: Path) -> None:
    """llama.cpp's gemma has one matrix for both, so the message counts the rows that differ and names the way out."""
    embedding = base_tensors()["model.embed_tokens.weight"]
    head = embedding.copy()
    head[[5, 900]] *= np.float32(1.1)
    saved = {EMBEDDING + ".weight": embedding, HEAD + ".weight": head}
    source = peft(tmp_path / "a", "tag", adapter_tensors("tag") | saved, modules_to_save=["embed_tokens", "lm_head"])
    with pytest.raises(UnsupportedAdapter, match=r"trained apart \(2 of 1024 rows differ\).*ensure_weight_tying=True"):
        merge(BASE, [(source, 1.0)], tmp_path / "x.gguf", F32)
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize("key", [EMBEDDING, HEAD])
def test_a_copy_of_one_side_alone_is_refused(key: str, tmp_path: Path) -> None:
    """modules_to_save of one side makes PEFT train a copy of it, and the other side stays the base's."""
    embedding = base_tensors()["model.embed_tokens.weight"] * np.float32(1.1)
    tensors = adapter_tensors("tag") | {key + ".weight": embedding}
    source = peft(tmp_path / "a", "tag", tensors, modules_to_save=[key.rpartition(".")[2]])
    with pytest.raises(UnsupportedAdapter, match="trained apart"):
        merge(BASE, [(source, 1.0)], tmp_path / "x.gguf", F32)


def test_a_lora_on_the_input_alone_is_refused(tmp_path: Path) -> None:
    """Without tying PEFT adds a LoRA on embed_tokens to the input only."""
    tensors = adapter_tensors("tag") | {
        EMBEDDING + ".lora_embedding_A": np.ones((8, 1024), np.float32),
        EMBEDDING + ".lora_embedding_B": np.ones((256, 8), np.float32),
    }
    with pytest.raises(UnsupportedAdapter, match=r"trained apart \(1024 of 1024 rows differ\)"):
        merge(BASE, [(peft(tmp_path / "a", "tag", tensors), 1.0)], tmp_path / "x.gguf", F32)


def test_a_trained_embedding_is_merged_once_and_whole(tmp_path: Path) -> None:
    """Two adapters cannot both replace the embedding, and a replaced one has no scale."""
    build = MERGES["merged_embedding_and_head"][0][0]
    one, other = build(tmp_path / "one"), build(tmp_path / "other")
    with pytest.raises(UnsupportedAdapter, match="trained by another adapter of this merge too"):
        merge(BASE, [(one, 1.0), (other, 1.0)], tmp_path / "x.gguf", F32)
    with pytest.raises(UnsupportedAdapter, match=r"trained whole, so it cannot be scaled by 0\.5"):
        merge(BASE, [(one, 0.5)], tmp_path / "x.gguf", F32)


def test_new_tokens_are_named_by_the_adapters_tokenizer(tmp_path: Path) -> None:
    """The merged base has a row and a name for each new token, and every quantised type can hold it."""
    source = MERGES["merged_new_tokens"][0][0](tmp_path / "new")
    summary = merge(BASE, [(source, 1.0)], tmp_path / "x.gguf", Options("q4_k_m"))
    assert summary.hyperparameters.n_vocab == 1026
    llama = Llama(str(tmp_path / "x.gguf"), vocab_only=True, verbose=False)
    try:
        assert llama.tokenize(b"<tool>Paris</tool>", add_bos=False, special=True)[:1] == [1024]
        assert llama.tokenize(b"<tool>Paris</tool>", add_bos=False, special=True)[-1:] == [1025]
    finally:
        llama.close()


def test_new_tokens_without_a_tokenizer_are_warned_of(tmp_path: Path) -> None:
    """An adapter with more rows whose tokenizer was not saved beside it gives rows without a name."""
    source = MERGES["merged_new_tokens"][0][0](tmp_path / "new")
    (source / "tokenizer.model").unlink()
    merge(BASE, [(source, 1.0)], tmp_path / "x.gguf", Options("q8_0"))
    (warning,) = json.loads((tmp_path / "x.gguf.json").read_text())["warnings"]
    assert "2 rows of the embedding have no token" in warning
