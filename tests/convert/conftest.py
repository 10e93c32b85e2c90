"""The tiny Gemma's directories, and its base as a GGUF header."""

from pathlib import Path

import pytest

from convert.conversion.conversion import Options, convert_model
from convert.gguf.header import GgufHeader, read_header
from tests.tiny_gemma.files import BASE, TINY_GEMMA


@pytest.fixture(scope="session")
def checkpoint_dir() -> Path:
    """The tiny Gemma's checkpoint."""
    return BASE


@pytest.fixture(scope="session")
def adapters_dir() -> Path:
    """The folder of the tiny Gemma's three PEFT adapters."""
    return TINY_GEMMA / "adapters"


@pytest.fixture(scope="session")
def base_gguf(tmp_path_factory: pytest.TempPathFactory, checkpoint_dir: Path) -> Path:
    """The tiny Gemma in F32."""
    path = tmp_path_factory.mktemp("base") / "base-f32.gguf"
    convert_model(checkpoint_dir, path, Options("f32"))
    return path


@pytest.fixture(scope="session")
def base_header(base_gguf: Path) -> GgufHeader:
    """The header of `base_gguf`."""
    return read_header(base_gguf)
