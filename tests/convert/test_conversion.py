"""What is written equals, tensor by tensor, what llama.cpp's own converter and quantiser write."""

import json
from pathlib import Path

import pytest

from convert.conversion import Options, convert_adapter, convert_model
from convert.errors import OutputProblem
from convert.gguf_header import read_header
from convert.quantize import MODEL_TYPES
from tests.convert.digests import tensor_digest

ORACLE = json.loads((Path(__file__).parent / "oracle_digests.json").read_text())


@pytest.mark.parametrize("type_name", MODEL_TYPES)
def test_model_tensors_equal_the_oracles(type_name: str, tmp_path: Path, checkpoint_dir: Path) -> None:
    """Each type's tensors have llama.cpp's digest, K-quants made directly included."""
    path = tmp_path / "base.gguf"
    convert_model(checkpoint_dir, path, Options(type_name, n_threads=2))
    assert tensor_digest(path) == ORACLE[f"base-{type_name}"]
    assert read_header(path).metadata["general.file_type"] == MODEL_TYPES[type_name].number


@pytest.mark.parametrize("type_name", ["f32", "f16", "bf16", "q8_0"])
@pytest.mark.parametrize("style", ["pirate", "shout", "tag"])
def test_adapter_tensors_equal_the_oracles(
    style: str, type_name: str, tmp_path: Path, adapters_dir: Path, base_gguf: Path
) -> None:
    """Each adapter's tensors have llama.cpp's digest in the types both can write."""
    path = tmp_path / "adapter.gguf"
    summary = convert_adapter(adapters_dir / style, base_gguf, path, Options(type_name))
    assert tensor_digest(path) == ORACLE[f"{style}-{type_name}"]
    assert (summary.n_pairs, summary.max_rank, summary.alpha) == (14, 8, 16.0)


def test_a_checkpoint_serves_as_base(tmp_path: Path, adapters_dir: Path, checkpoint_dir: Path, base_gguf: Path) -> None:
    """The base of an adapter may be a GGUF or the checkpoint it was made from; the result is the same."""
    results = []
    for base in (checkpoint_dir, base_gguf):
        path = tmp_path / "tag.gguf"
        convert_adapter(adapters_dir / "tag", base, path, Options("q8_0", force=True))
        results.append(tensor_digest(path))
    assert results[0] == results[1]


def test_an_existing_file_is_kept(tmp_path: Path, checkpoint_dir: Path) -> None:
    """Without force nothing is replaced; the old bytes stay."""
    path = tmp_path / "base.gguf"
    path.write_bytes(b"mine")
    with pytest.raises(OutputProblem, match="--force"):
        convert_model(checkpoint_dir, path, Options("q8_0"))
    assert path.read_bytes() == b"mine"
    assert list(tmp_path.iterdir()) == [path]
