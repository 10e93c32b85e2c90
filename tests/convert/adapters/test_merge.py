"""Merges that cannot be exact are refused; the arithmetic of exact ones is in test_logits."""

from pathlib import Path

import numpy as np
import pytest

from convert.conversion.conversion import Options, merge
from convert.errors import BadValue, InvalidOption, TensorMismatch, UnsupportedAdapter
from convert.gguf.quantisers import Ggml
from convert.tensors.gguf import GgufRows, OpenGguf
from convert.tensors.safetensors import SafetensorsFile
from tests.convert.checkpoints import BASE, adapter_tensors, base_tensors, peft
from tests.convert.variants import MERGES

F32 = Options("f32")
Q = "base_model.model.model.layers.0.self_attn.q_proj."
DORA, NORMS = MERGES["merged_dora"][0][0], MERGES["merged_norms"][0][0]


def test_a_plain_merge_is_the_sum(tmp_path: Path, adapters_dir: Path) -> None:
    """W + scale * alpha / rank * B @ A, chunk by chunk, in float32."""
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
    """A norm trained whole has no scale."""
    with pytest.raises(UnsupportedAdapter, match=r"cannot be scaled by 0\.5"):
        merge(BASE, [(NORMS(tmp_path / "norms"), 0.5)], tmp_path / "x.gguf", F32)


def test_an_alora_is_refused(tmp_path: Path) -> None:
    """It changes some tokens only, and merged weights would change them all."""
    part = (peft(tmp_path / "alora", "tag", alora_invocation_tokens=[106]), 1.0)
    with pytest.raises(UnsupportedAdapter, match="applies to some tokens only, so it cannot be merged"):
        merge(BASE, [part], tmp_path / "x.gguf", F32)


def test_a_norm_trained_twice_is_refused(tmp_path: Path) -> None:
    """Two adapters cannot both replace one norm."""
    parts = [(NORMS(tmp_path / name), 1.0) for name in ("a", "b")]
    with pytest.raises(UnsupportedAdapter, match="trained whole by another adapter"):
        merge(BASE, parts, tmp_path / "x.gguf", F32)


def test_magnitudes_of_another_shape_are_refused(tmp_path: Path) -> None:
    """DoRA has one magnitude for each row."""
    tensors = {key: value for key, value in adapter_tensors("tag").items() if key.startswith(Q)}
    tensors[Q + "lora_magnitude_vector"] = np.ones(3, np.float32)
    with pytest.raises(TensorMismatch, match=r"magnitudes of \[3\]"):
        merge(BASE, [(peft(tmp_path / "dora", "tag", tensors, use_dora=True), 1.0)], tmp_path / "x.gguf", F32)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 1e9])
def test_an_absurd_scale_is_refused(scale: float, tmp_path: Path, adapters_dir: Path) -> None:
    """A scale must be a number that can be one."""
    with pytest.raises(InvalidOption, match="cannot be merged"):
        merge(BASE, [(adapters_dir / "tag", scale)], tmp_path / "x.gguf", F32)


def test_a_dora_of_scale_one_is_itself(tmp_path: Path) -> None:
    """Rows get exactly the trained lengths."""
    path = tmp_path / "merged.gguf"
    source = DORA(tmp_path / "dora")
    merge(BASE, [(source, 1.0)], path, F32)
    with SafetensorsFile(source / "adapter_model.safetensors") as file, OpenGguf(path) as gguf:
        rows = GgufRows(gguf, "blk.0.attn_q.weight", Ggml()).read(0, 256)
        assert np.allclose(np.linalg.norm(rows, axis=1), file.read(Q + "lora_magnitude_vector"), rtol=1e-5)


def test_a_change_beyond_float32_is_refused(tmp_path: Path) -> None:
    """Finite halves whose product is not: refused before any quantiser sees it."""
    tensors = adapter_tensors("tag")
    tensors[Q + "lora_A.weight"][:] = 1e30
    tensors[Q + "lora_B.weight"][:] = 1e30
    source = peft(tmp_path / "huge", "tag", tensors)
    with pytest.raises(BadValue, match="too large for float32"):
        merge(BASE, [(source, 1.0)], tmp_path / "x.gguf", Options("q4_k_m"))
