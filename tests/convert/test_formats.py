"""Files and folders that are neither GGUF nor safetensors are named for what they are, by every reader."""

import gzip
import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from convert.commands.arguments import main
from convert.commands.inspection import inspect
from convert.conversion.conversion import Options, convert_adapter, convert_model, planned_adapter, planned_model
from convert.errors import ConvertError, LfsPointer, MissingFile, UnsafeFile
from convert.formats import START_BYTES, describe
from convert.gguf.header import read_header
from convert.tensors.safetensors import SafetensorsFile
from tests.convert.checkpoints import adapter_tensors, base_tensors, checkpoint, peft
from tests.tiny_gemma.files import BASE

F32 = Options("f32")


def _zip(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/").replace("_DOT_", "."), content)
    return file.getvalue()


def _saved(save: Callable[[io.BytesIO], object]) -> bytes:
    file = io.BytesIO()
    save(file)
    return file.getvalue()


FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "an empty file"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "a git-LFS pointer"),
    "a web page": (b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title>", "a web page instead of the file"),
    "an XML answer": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "a web page"),
    "a gate's text": (b"Access to model google/gemma-7b is restricted. You must be authenticated", "server's refusal"),
    "a missing entry": (b"Entry not found", "a server's refusal"),
    "a JSON error": (b'{"error":"Invalid username or password."}', "a server's refusal"),
    "a pickle": (pickle.dumps({"w": [1.0]}, protocol=2), "a pickle"),
    "torch.save": (_zip(archive__data_DOT_pkl=b"x", archive__data__0=b"y"), "a pickle"),
    "torch.save of 2024": (_zip(model___DOT_format_version=b"1", model__data_DOT_pkl=b"x"), "a pickle"),
    "torch.save of 2019": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "a pickle"),
    "npy": (_saved(lambda file: np.save(file, np.ones(3))), "a NumPy array"),
    "npz": (_saved(lambda file: np.savez(file, w=np.ones(3))), "a NumPy archive"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(24), "an HDF5 file (Keras weights)"),
    "Keras": (_zip(metadata_DOT_json=b"{}", config_DOT_json=b"{}"), "a Keras archive"),
    "TensorFlow Lite": (b"\x1c\0\0\0TFL3" + bytes(16), "a TensorFlow Lite model"),
    "ggml": (b"lmgg" + bytes(16), "an old GGML file"),
    "ggjt": (b"tjgg\x03\0\0\0", "an old GGML file"),
    "ggla": (b"algg\x01\0\0\0", "an old GGML file"),
    "gzip": (gzip.compress(b"x"), "an archive"),
    "zip": (_zip(notes_DOT_txt=b"x"), "an archive"),
    "tar": (b"folder/".ljust(257, b"\0") + b"ustar\x0000", "an archive"),
    "zeros": (bytes(4096), "a file of zeros"),
}
NEITHER = {
    "big-endian GGUF": (b"FUGG" + bytes(16), "a big-endian GGUF file"),
    "JSON": (b'\xef\xbb\xbf {"a": 1}', "a JSON file, not weights"),
}


@pytest.mark.parametrize("case", FILES | NEITHER)
def test_a_file_is_named_for_what_it_is(case: str) -> None:
    """The first bytes of real files of each format are recognised."""
    content, words = (FILES | NEITHER)[case]
    assert words in str(describe(content[:START_BYTES]))


def test_unknown_files_are_not_guessed() -> None:
    """Random bytes and a plain text get no description."""
    assert describe(np.random.default_rng(1).bytes(512)) is None
    assert describe(b"hello") is None


@pytest.mark.parametrize("case", FILES)
def test_every_reader_says_so(case: str, tmp_path: Path, base_gguf: Path) -> None:
    """The GGUF reader, the safetensors reader, convert and inspect all refuse with the same words, on one line."""
    content, words = FILES[case]
    gguf, weights = tmp_path / "x.gguf", tmp_path / "x.safetensors"
    gguf.write_bytes(content)
    weights.write_bytes(content)
    (checkpoint(tmp_path / "model") / "model.safetensors").write_bytes(content)
    (peft(tmp_path / "adapter", "tag") / "adapter_model.safetensors").write_bytes(content)
    readers: list[Callable[[], object]] = [
        lambda: read_header(gguf),
        lambda: SafetensorsFile(weights),
        lambda: inspect(gguf),
        lambda: inspect(weights),
        lambda: convert_model(tmp_path / "model", tmp_path / "out.gguf", F32),
        lambda: convert_adapter(tmp_path / "adapter", base_gguf, tmp_path / "out.gguf", F32),
        lambda: convert_adapter(gguf, base_gguf, tmp_path / "out.gguf", F32),
    ]
    kind = UnsafeFile if words == "a pickle" else LfsPointer if words == "a git-LFS pointer" else ConvertError
    for read in readers:
        with pytest.raises(kind) as caught:
            read()
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize("case", ["a web page", "a gate's text", "a JSON error", "empty"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.model"])
def test_the_small_files_too(case: str, name: str, tmp_path: Path) -> None:
    """A configuration or tokenizer that is a web page or a refusal is named as one."""
    content, words = FILES[case]
    (checkpoint(tmp_path / "model") / name).write_bytes(content)
    with pytest.raises(ConvertError) as caught:
        convert_model(tmp_path / "model", tmp_path / "out.gguf", F32)
    assert words in str(caught.value)


def _folder(directory: Path, *names: str) -> Path:
    for name in names:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    directory.mkdir(exist_ok=True)
    return directory


FOLDERS: dict[str, tuple[tuple[str, ...], str]] = {
    "empty": ((), "an empty folder"),
    "a Trainer's": (
        ("training_args.bin", "checkpoint-90/x", "checkpoint-300/x"),
        "the folder of a training run; give one of its checkpoints: checkpoint-300",
    ),
    "GGUF files": (("a.GGUF", "b.gguf"), "a folder of GGUF files; give one of them: a.GGUF"),
    "Keras": (("model.weights.h5", "task.json"), "a folder of Keras weights"),
    "Flax": (("flax_model.msgpack",), "a folder of Flax weights"),
    "NumPy": (("weights.npz",), "a folder of NumPy arrays"),
    "TensorFlow Lite": (("gemma.tflite",), "a TensorFlow Lite model"),
    "pickles": (("consolidated.pth", "tokenizer.model"), r"only there as consolidated\.pth, a pickle"),
    "a folder around it": (("gemma-2b/config.json",), "a folder around another one; give that: gemma-2b"),
    "several snapshots": (
        ("refs/main", "snapshots/aa/config.json", "snapshots/bb/config.json"),
        "with 2 snapshots; give one: aa, bb",
    ),
    "a tokenizer alone": (("tokenizer.json",), "no config.json|neither config.json nor adapter_config.json|no adapter"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_is_named_for_what_it_is(case: str, tmp_path: Path, base_gguf: Path) -> None:
    """Convert model, convert adapter and inspect say what the folder is and what to give instead."""
    names, words = FOLDERS[case]
    folder = _folder(tmp_path / "folder", *names)
    readers: list[Callable[[], object]] = [
        lambda: convert_model(folder, tmp_path / "out.gguf", F32),
        lambda: convert_adapter(folder, base_gguf, tmp_path / "out.gguf", F32),
        lambda: inspect(folder),
    ]
    for read in readers:
        with pytest.raises((MissingFile, UnsafeFile), match=words):
            read()


def test_a_hub_name_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message for a name of the Hugging Face Hub gives the command that downloads it."""
    monkeypatch.chdir(tmp_path)
    for read in (lambda p: convert_model(p, Path("x.gguf"), F32), read_header, inspect):
        with pytest.raises(MissingFile, match="fetch it first: hf download google/gemma-2b-it --local-dir gemma-2b-it"):
            read(Path("google/gemma-2b-it"))
    with pytest.raises(MissingFile, match="no such file"):
        read_header(tmp_path / "here" / "model.gguf")


def _unmerged(directory: Path) -> Path:
    tensors = {key.replace(".weight", ".base_layer.weight"): value for key, value in base_tensors().items()}
    lora = {key.removeprefix("base_model.model."): value for key, value in adapter_tensors("tag").items()}
    return checkpoint(directory, tensors | lora)


TRIALS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "an unmerged PEFT model": (_unmerged, "a model saved with its adapters beside it; merge them first"),
    "a classifier by name": (
        lambda p: checkpoint(p, architectures=["GemmaForSequenceClassification"]),
        "a classifier .* models that generate text",
    ),
    "a classifier's head": (
        lambda p: checkpoint(p, base_tensors() | {"score.weight": np.ones((2, 256), np.float32)}),
        "the head of a classifier",
    ),
    "empty tensors": (
        lambda p: checkpoint(p, base_tensors() | {"model.norm.weight": np.ones((0,), np.float32)}),
        "is empty: its weights were not gathered when it was saved",
    ),
    "an adapter's empty tensors": (
        lambda p: peft(p, "tag", dict.fromkeys(adapter_tensors("tag"), np.ones((0,), np.float32))),
        "is empty: its weights were not gathered when it was saved",
    ),
    "another architecture": (lambda p: checkpoint(p, architectures=["Gemma2ForCausalLM"]), "Gemma2ForCausalLM"),
    "a DoRA": (lambda p: peft(p, "tag", use_dora=True), "has no magnitudes"),
    "a trained embedding": (
        lambda p: peft(
            p, "tag", adapter_tensors("tag") | {"model.embed_tokens.weight": np.ones((1024, 256), np.float32)}
        ),
        "gemlane merge CHECKPOINT",
    ),
}


@pytest.mark.parametrize("case", TRIALS)
def test_inspect_says_what_convert_would_refuse(
    case: str, tmp_path: Path, base_gguf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The reason is shown before anything is tried, and it is the one that convert gives."""
    build, words = TRIALS[case]
    folder = build(tmp_path / "folder")
    is_model = (folder / "config.json").exists()
    planned = planned_model(folder, (), F32) if is_model else planned_adapter(folder, base_gguf, F32)
    with pytest.raises(ConvertError, match=words) as caught, planned:
        pass
    for arguments in (["inspect", str(folder)], ["inspect", str(folder), "--base", str(base_gguf)]):
        assert main(arguments) == 0
        shown = capsys.readouterr().out
        assert f"problem                 {caught.value}" in shown


def test_inspect_shows_warnings_and_no_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint that converts with warnings shows them; one that converts shows none."""
    assert main(["inspect", str(checkpoint(tmp_path / "model", quantization_config={"quant_method": "awq"}))]) == 0
    assert "warnings                config.json says that the weights are quantised (awq)" in capsys.readouterr().out
    assert main(["inspect", str(BASE)]) == 0
    assert "problem" not in capsys.readouterr().out


def test_half_a_download_is_refused(tmp_path: Path) -> None:
    """A model file whose second half is zeros, as a download leaves that reserved its space, converts to nothing."""
    path = checkpoint(tmp_path / "model") / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    with pytest.raises(ConvertError, match="holds nothing but zeros: the weights are incomplete"):
        convert_model(tmp_path / "model", tmp_path / "out.gguf", Options("q4_k_m"))
    assert not (tmp_path / "out.gguf").exists()


def test_zero_norms_are_sound(tmp_path: Path) -> None:
    """Gemma's norms multiply by 1 + w, so all zeros is how they start."""
    tensors = base_tensors() | {"model.norm.weight": np.zeros(256, np.float32)}
    convert_model(checkpoint(tmp_path / "model", tensors), tmp_path / "out.gguf", F32)
