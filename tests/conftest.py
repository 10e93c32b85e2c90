"""The tiny Gemma as GGUF for the tests of many packages, converted once a session by the real converter."""

from __future__ import annotations

from pathlib import Path

import pytest

from convert.commands.arguments import main as convert

TINY_GEMMA = Path(__file__).parent / "tiny_gemma"
ADAPTERS = ("pirate", "shout", "tag")


def _convert(*arguments: str | Path) -> None:
    assert convert([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Gemma in Q4_K_M."""
    path = tmp_path_factory.mktemp("tiny") / "tiny-q4_k_m.gguf"
    _convert("model", TINY_GEMMA / "base", "-o", path, "--type", "q4_k_m")
    return path


@pytest.fixture(scope="session")
def tiny_model_f32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Gemma in F32, for tight bounds."""
    path = tmp_path_factory.mktemp("tiny") / "tiny-f32.gguf"
    _convert("model", TINY_GEMMA / "base", "-o", path, "--type", "f32")
    return path


@pytest.fixture(scope="session")
def tiny_adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pirate.gguf, shout.gguf and tag.gguf, in Q8_0."""
    folder = tmp_path_factory.mktemp("adapters")
    for name in ADAPTERS:
        source = TINY_GEMMA / "adapters" / name
        _convert("adapter", source, "--base", tiny_model, "-o", folder / f"{name}.gguf", "--type", "q8_0")
    return folder
