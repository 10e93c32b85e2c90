"""`verify` measures how far two models are apart, and survives a llama.cpp that dies."""

import signal
from pathlib import Path

import numpy as np
import pytest

from convert.commands.arguments import main
from convert.conversion.conversion import Options, convert_adapter, convert_model
from convert.errors import InvalidOption, NativeFailure, RejectedModel
from convert.models.mix import MODEL_TYPES
from convert.native import child as native_child
from convert.native.child import Subject, logits
from convert.native.verify import compare, verify
from tests.convert.checkpoints import base_tensors, checkpoint
from tests.convert.digests import tensor_digest
from tests.convert.gguf_bytes import Tensor, adapter, f32
from tests.convert.llama_quantize import quantize
from tests.tiny_gemma.files import BASE

LIMITS = {"f16": 1e-5, "q8_0": 1e-3, "q4_k_m": 2e-2}


@pytest.mark.parametrize("type_name", LIMITS)
def test_quantised_models_are_near(type_name: str, tmp_path: Path, base_gguf: Path) -> None:
    """The mean divergence stays below what each type is known for, and is not nothing."""
    path = tmp_path / "base.gguf"
    convert_model(BASE, path, Options(type_name))
    result = verify(Subject(base_gguf), Subject(path))
    assert 0.0 < result.mean_kl < LIMITS[type_name]
    assert result.top1 > 0.95


def test_an_adapter_is_far_and_an_idle_one_is_named(
    tmp_path: Path, base_gguf: Path, adapters_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An adapter changes the answers; one of zeros is warned of."""
    path, idle = tmp_path / "tag.gguf", tmp_path / "idle.gguf"
    convert_adapter(adapters_dir / "tag", base_gguf, path, Options("q8_0"))
    assert main(["verify", str(base_gguf), "--adapter", str(path), "--max-kl", "0.01"]) == 1
    assert "no effect" not in capsys.readouterr().err
    zeros = [
        Tensor("blk.0.attn_q.weight.lora_a", (256, 4)),
        Tensor("blk.0.attn_q.weight.lora_b", (4, 256), data=bytes(4096)),
    ]
    idle.write_bytes(adapter(*zeros, alpha=f32("adapter.lora.alpha", 4.0)).bytes())
    assert main(["verify", str(base_gguf), "--adapter", f"{idle}:2.0"]) == 0
    assert "no effect" in capsys.readouterr().err


def test_numbers_mean_what_they_say() -> None:
    """compare() gives the largest difference, the mean divergence in nats and the share of equal top tokens."""
    ours = [np.log(np.array([[0.5, 0.5], [0.9, 0.1]], np.float32))]
    theirs = [np.log(np.array([[0.5, 0.5], [0.1, 0.9]], np.float32))]
    result = compare(ours, theirs)
    assert result.n_positions == 2
    assert result.max_difference == pytest.approx(np.log(9.0), rel=1e-6)
    assert result.mean_kl == pytest.approx(0.8 * np.log(9.0) / 2, rel=1e-6)
    assert result.top1 == 0.5


def test_nothing_to_compare(base_gguf: Path) -> None:
    """Verify refuses to compare a model with itself."""
    assert main(["verify", str(base_gguf)]) == 2
    assert main(["verify", str(base_gguf), "--adapter", "a:b"]) == 2


def test_other_vocabularies_are_refused(tmp_path: Path, base_gguf: Path) -> None:
    """Logits of different vocabularies cannot be compared."""
    tensors = base_tensors()
    wider = np.vstack([tensors["model.embed_tokens.weight"], np.zeros((8, 256), np.float32)])
    path = tmp_path / "wider.gguf"
    convert_model(
        checkpoint(tmp_path / "m", tensors | {"model.embed_tokens.weight": wider}, vocab_size=1032),
        path,
        Options("f16"),
    )
    with pytest.raises(RejectedModel, match="a vocabulary of 1032 tokens"):
        verify(Subject(base_gguf), Subject(path))


def test_a_refusal_of_llama_cpp_is_an_error(tmp_path: Path) -> None:
    """The error holds the last error line of llama.cpp."""
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF nonsense")
    with pytest.raises(NativeFailure, match=r"llama\.cpp refused it: .*fail"):
        logits(Subject(path), ["x"])


def test_a_death_of_llama_cpp_is_an_error(base_gguf: Path, tmp_path: Path) -> None:
    """An adapter whose alpha has the wrong type aborts llama.cpp; the parent lives, and names the signal."""
    path = tmp_path / "x.gguf"
    path.write_bytes(adapter(alpha=b"\x12\0\0\0\0\0\0\0adapter.lora.alpha\x04\0\0\0\x10\0\0\0").bytes())
    with pytest.raises(NativeFailure, match=f"died with signal {int(signal.SIGABRT)}"):
        logits(Subject(base_gguf, path), ["x"])


def test_llama_cpps_own_quantiser_gives_the_same_tensors(tmp_path: Path, base_gguf: Path) -> None:
    """llama_model_quantize on an F32 file gives what the converter writes directly."""
    direct, second = tmp_path / "direct.gguf", tmp_path / "second.gguf"
    convert_model(BASE, direct, Options("q4_k_m"))
    quantize(base_gguf, second, MODEL_TYPES["q4_k_m"].number)
    assert tensor_digest(direct) == tensor_digest(second)


def test_options_are_checked() -> None:
    """Thread counts outside 1 to 1024 are refused."""
    with pytest.raises(InvalidOption):
        Options("f32", n_threads=0)
    assert native_child.Subject(Path("a")).scale == 1.0
