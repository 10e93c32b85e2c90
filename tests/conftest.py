"""For the tests of many packages: marks, signals, and the tiny Gemma as GGUF, converted once a session."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.tiny_gemma.files import ADAPTERS, convert_adapter, convert_base

_MARKED = frozenset({"browser", "clients", "cluster", "devices"})
"""Folders whose tests have the folder's name as their mark; only an option of ``scripts/test`` runs them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of the marked folders."""
    for item in items:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        if folder in _MARKED:
            item.add_marker(folder)


def pytest_configure() -> None:
    """Let Ctrl-C end the programs that tests start: those started by a job in a shell's background would ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Gemma in Q4_K_M."""
    path = tmp_path_factory.mktemp("tiny") / "tiny-q4_k_m.gguf"
    convert_base(path, "q4_k_m")
    return path


@pytest.fixture(scope="session")
def tiny_model_f32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Gemma in F32, for tight bounds."""
    path = tmp_path_factory.mktemp("tiny") / "tiny-f32.gguf"
    convert_base(path, "f32")
    return path


@pytest.fixture(scope="session")
def tiny_adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pirate.gguf, shout.gguf and tag.gguf, in Q8_0."""
    folder = tmp_path_factory.mktemp("adapters")
    for name, source in ADAPTERS.items():
        convert_adapter(source, tiny_model, folder / f"{name}.gguf")
    return folder
