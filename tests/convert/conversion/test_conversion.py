"""What is written equals, tensor by tensor, what llama.cpp's own converter and quantiser write."""

import hashlib
import json
from pathlib import Path

import pytest

from convert.conversion.conversion import Options, convert_adapter, convert_model
from convert.errors import MalformedFile, MalformedGguf, OutputProblem, TensorMismatch
from convert.gguf.header import read_header
from convert.models.mix import MODEL_TYPES
from tests.convert.digests import tensor_digest
from tests.convert.gguf_bytes import Gguf, Tensor, string
from tests.convert.importance import write_imatrix

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
    """Without --force an existing file is not replaced."""
    path = tmp_path / "base.gguf"
    path.write_bytes(b"mine")
    with pytest.raises(OutputProblem, match="--force"):
        convert_model(checkpoint_dir, path, Options("q8_0"))
    assert path.read_bytes() == b"mine"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("type_name", ["q6_k", "q5_0", "q4_k_m", "q4_0", "iq4_xs", "q3_k_m", "q2_k"])
def test_an_importance_matrix_gives_the_oracles_tensors(
    type_name: str, tmp_path: Path, checkpoint_dir: Path, base_gguf: Path
) -> None:
    """With an imatrix too, values and choices of types are llama_model_quantize's; one weight is not in it."""
    imatrix, path = write_imatrix(tmp_path / "imatrix.gguf", base_gguf), tmp_path / "base.gguf"
    convert_model(checkpoint_dir, path, Options(type_name, importance=imatrix))
    assert tensor_digest(path) == ORACLE[f"imatrix-{type_name}"]


def test_bad_importance_is_refused(tmp_path: Path, checkpoint_dir: Path, base_gguf: Path) -> None:
    """An old imatrix.dat, a model, another model's imatrix and NaN are each refused in one line."""
    old, other, broken = tmp_path / "imatrix.dat", tmp_path / "other.gguf", tmp_path / "broken.gguf"
    old.write_bytes(b"\x05\x00\x00\x00imatrix")
    kind = [string("general.type", "imatrix")]
    sums = Tensor("token_embd.weight.in_sum2", (128, 1))
    other.write_bytes(Gguf(kind, [sums, Tensor("token_embd.weight.counts", (1, 1))]).bytes())
    foreign = tmp_path / "foreign.gguf"
    foreign.write_bytes(Gguf(kind, [Tensor("x.in_sum2", (4, 1)), Tensor("x.counts", (1, 1))]).bytes())
    broken.write_bytes(Gguf(kind, [Tensor("token_embd.weight.in_sum2", (256, 1))]).bytes())
    for path, error, words in (
        (old, MalformedFile, "not a GGUF; convert an old imatrix.dat"),
        (base_gguf, MalformedGguf, "general.type is not 'imatrix'"),
        (other, TensorMismatch, "128 columns, but the model's has 256"),
        (foreign, TensorMismatch, "none of its weights belongs to this model"),
        (broken, MalformedGguf, "has no counts beside it"),
    ):
        with pytest.raises(error, match=words):
            convert_model(checkpoint_dir, tmp_path / "x.gguf", Options("q4_0", importance=path))


def test_the_record_names_inputs_and_result(tmp_path: Path, checkpoint_dir: Path) -> None:
    """Digests are of the files as they are, and the same conversion gives the same record and the same bytes."""
    records = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "base.gguf"
        convert_model(checkpoint_dir, path, Options("q4_k_m", n_threads=3))
        record = json.loads((tmp_path / name / "base.gguf.json").read_text())
        assert record["output"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert record["output"]["size_bytes"] == path.stat().st_size
        assert record["output"]["tensors"] == {"F32": 5, "Q4_K": 12, "Q6_K": 3}
        weights = next(one for one in record["inputs"] if one["path"].endswith("model.safetensors"))
        assert weights["sha256"] == hashlib.sha256((checkpoint_dir / "model.safetensors").read_bytes()).hexdigest()
        records.append(record)
    assert records[0] == records[1]
