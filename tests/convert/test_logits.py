"""Converted models and adapters give the logits that transformers and PEFT give."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from convert.conversion.conversion import Options, convert_adapter, merge
from convert.native.child import Subject, logits
from tests.convert.checkpoints import Array
from tests.convert.variants import ADAPTERS, MERGES, N_KEPT, NEW_TOKENS, mlx, with_new_tokens
from tests.tiny_gemma.files import BASE

REFERENCE = Path(__file__).parent / "reference_logits.npz"
F32 = Options("f32")
TOLERANCE = 0.01  # llama.cpp's GELU is a table in F16, which alone makes about 0.004


@pytest.fixture(scope="module")
def reference() -> dict[str, Array]:
    """The shipped logits, by variant."""
    with np.load(REFERENCE) as file:
        return dict(file)


def difference(subject: Subject, reference: dict[str, Array], name: str) -> float:
    """Return the largest difference of the kept logits."""
    tokens = reference["tokens"].tolist()
    _, (found,) = logits(subject, [], [with_new_tokens(tokens) if name in NEW_TOKENS else tokens])
    return float(np.abs(found[-N_KEPT:] - reference[name]).max())


def test_base(base_gguf: Path, reference: dict[str, Array]) -> None:
    """The converted base has the logits of transformers."""
    assert difference(Subject(base_gguf), reference, "base") <= TOLERANCE


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapter(name: str, tmp_path: Path, base_gguf: Path, reference: dict[str, Array]) -> None:
    """A converted adapter has PEFT's logits under each of its scale rules, and the base alone has not."""
    path = tmp_path / "adapter.gguf"
    convert_adapter(ADAPTERS[name](tmp_path / name), base_gguf, path, F32)
    assert difference(Subject(base_gguf, path), reference, name) <= TOLERANCE
    assert difference(Subject(base_gguf), reference, name) > 1.0


@pytest.mark.parametrize("name", MERGES)
def test_merge(name: str, tmp_path: Path, base_gguf: Path, reference: dict[str, Array]) -> None:
    """A merged base has PEFT's logits (DoRA, norms, embeddings, new tokens, blends), and the base alone has not."""
    path = tmp_path / "merged.gguf"
    parts = [(build(tmp_path / str(i)), scale) for i, (build, scale) in enumerate(MERGES[name])]
    merge(BASE, parts, path, F32)
    assert difference(Subject(path), reference, name) <= TOLERANCE
    if name not in NEW_TOKENS:  # which the base does not know
        assert difference(Subject(base_gguf), reference, name) > 1.0


def test_mlx_is_the_same_adapter(tmp_path: Path, base_gguf: Path, reference: dict[str, Array]) -> None:
    """An MLX adapter, transposed and with a whole factor, has the logits of the same PEFT adapter."""
    path = tmp_path / "adapter.gguf"
    convert_adapter(mlx(tmp_path / "mlx"), base_gguf, path, F32)
    assert difference(Subject(base_gguf, path), reference, "plain") <= TOLERANCE


def test_a_gguf_adapter_stays_the_same(tmp_path: Path, base_gguf: Path, reference: dict[str, Array]) -> None:
    """Stored as another type and back. Differing alphas are folded into B, and what is left is a factor of 1."""
    half, whole = tmp_path / "f16.gguf", tmp_path / "f32.gguf"
    first = convert_adapter(ADAPTERS["alpha_pattern"](tmp_path / "peft"), base_gguf, half, Options("f16"))
    again = convert_adapter(half, base_gguf, whole, F32)
    assert (first.alpha, again.alpha) == (None, 8.0)
    assert difference(Subject(base_gguf, whole), reference, "alpha_pattern") <= TOLERANCE


@pytest.mark.filterwarnings("default")  # those of transformers and peft are not ours to fix
@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torch", "transformers", "peft", "sentencepiece")),
    reason="torch, transformers, peft and sentencepiece are not installed: pip install '.[train]'",
)
def test_the_shipped_reference_is_hugging_faces(reference: dict[str, Array]) -> None:
    """The shipped logits are what the installed transformers and PEFT compute."""
    from tests.convert.make_reference import references  # noqa: PLC0415 - needs the optional extra

    computed = references()
    assert set(computed) == set(reference)
    for name, values in computed.items():
        assert np.abs(values - reference[name]).max() <= 1e-3, name
