"""What is not a base model's GGUF is refused before llama.cpp sees it, in words that say what it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.engine.start.model_file import check_model_file
from runtime.errors import ModelLoadError
from tests.tiny_gemma.files import ADAPTERS, BASE


def _file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _trainers(folder: Path) -> Path:
    (folder / "checkpoint-300").mkdir(parents=True)
    return folder


def _with_gguf(folder: Path) -> Path:
    folder.mkdir()
    return _file(folder / "gemma.gguf", b"GGUF").parent


CASES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a checkpoint": (lambda _: BASE, "a checkpoint, not a GGUF file; convert it: gemlane convert model"),
    "an adapter": (lambda _: ADAPTERS["tag"], "an adapter, not a model"),
    "a Trainer's folder": (_trainers, "the folder of a training run; give one of its checkpoints: checkpoint-300"),
    "a folder of GGUF files": (_with_gguf, "a folder of GGUF files; give one of them: gemma.gguf"),
    "a web page": (lambda p: _file(p, b"<!doctype html><title>Sign in</title>"), "a web page instead of the file"),
    "a git-lfs pointer": (lambda p: _file(p, b"version https://git-lfs.github.com/spec/v1\n"), "a git-LFS pointer"),
    "a pickle": (lambda p: _file(p, b"\x80\x02}q\x00."), "a pickle"),
    "safetensors": (lambda _: BASE / "model.safetensors", "a safetensors file"),
    "an old GGML file": (lambda p: _file(p, b"tjgg\x03\0\0\0"), "an old GGML file"),
    "a Hub name": (lambda _: Path("google/gemma-7b-it"), "hf download google/gemma-7b-it"),
    "nothing": (lambda p: p / "nowhere.gguf", "cannot be opened: no such file"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_reason_says_what_it_is(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line names the path, what is there, and the way to a base model."""
    monkeypatch.chdir(tmp_path)
    build, words = CASES[case]
    path = build(tmp_path / "model")
    with pytest.raises(ModelLoadError) as caught:
        check_model_file(path)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
