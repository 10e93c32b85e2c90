"""Devices beside the processor, and Metal's order of nodes on the processor."""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import llama_cpp
import pytest

from runtime.config import EngineSettings
from runtime.engine.start import prove as prove_module
from runtime.engine.start.prove import ProofTask
from runtime.llama import ggml
from runtime.llama.context import Context
from runtime.llama.devices import add_rpc_servers
from runtime.llama.lanes.bank import BankShape
from runtime.llama.library import Library
from tests.device import device_settings

PLACE = Path(__file__).parents[2] / ".gemlane" / "devices"
BACKEND = Path(os.environ.get("GGML_BACKEND_PATH", "")).stem.removeprefix("libggml-")
"""``rpc``, ``blas`` or ``vulkan``: the backend of this run."""
N_BATCH = 96
MakeTask = Callable[..., ProofTask]


@pytest.fixture(scope="session")
def library() -> Library:
    """llama.cpp, started once, with the servers' devices."""
    library = Library()
    add_rpc_servers(device_settings().get("rpc", ""))
    return library


@pytest.fixture
def make_task(tiny_model: Path) -> MakeTask:
    """A task of the self-check on the tiny model, whose two layers and head are three on a device."""

    def make(n_device_layers: int = 0, model: Path = tiny_model, **settings: str) -> ProofTask:
        known: dict[str, str] = {**device_settings(), "model": str(model), **settings}
        engine = EngineSettings(threads=1, **known)  # type: ignore[arg-type]
        return ProofTask(engine, N_BATCH, n_device_layers, n_layers=2)

    return make


@pytest.fixture(scope="session")
def metal_order() -> ctypes.CDLL:
    """Metal's function that reorders graphs, and ours that gives it to other backends, compiled."""
    (source,) = PLACE.glob("llama_cpp_python-*/vendor/llama.cpp/ggml")
    libraries = Path(llama_cpp.__file__).parent / "lib"
    target = PLACE / "libmetal-order.so"
    places = (f"-I{source / part}" for part in ("include", "src", "src/ggml-metal"))
    files = (Path(__file__).parent / "metal_order.cpp", source / "src/ggml-metal/ggml-metal-common.cpp")
    command = ["g++", "-std=c++17", "-O1", "-shared", "-fPIC", *places, *map(str, files), "-o", str(target)]
    subprocess.run([*command, f"-L{libraries}", "-l:libggml-base.so.0"], check=True)
    library = ctypes.CDLL(str(target))
    library.order_as_metal.argtypes = [ctypes.c_void_p]
    library.graphs_reordered.restype = ctypes.c_long
    return library


@pytest.fixture
def as_metal(metal_order: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Contexts order graphs as Metal does, lanes have results of their own; how many graphs were reordered."""
    make = Context.__init__

    def make_reordering(self: Context, *arguments: object) -> None:
        make(self, *arguments)  # type: ignore[arg-type]
        metal_order.order_as_metal(ggml.scheduler_of(self.handle))

    monkeypatch.setattr(Context, "__init__", make_reordering)
    monkeypatch.setattr(prove_module, "BankShape", functools.partial(BankShape, has_own_results=True))
    before = metal_order.graphs_reordered()
    return lambda: metal_order.graphs_reordered() - before
