"""The tiny Gemma under llama.cpp, in this process."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from convert.gguf.header import read_header
from runtime.llama.adapter import NativeAdapter
from runtime.llama.context import Chunk, Context, ContextShape
from runtime.llama.lanes.bank import BankShape
from runtime.llama.lanes.context import LanedContext
from runtime.llama.lanes.template import lora_shapes
from runtime.llama.lanes.weights import AdapterFile, lane_parts
from runtime.llama.library import Library
from runtime.llama.model import Model
from tests.device import placement
from tests.tiny_gemma.files import ADAPTERS, convert_adapter

SHAPE = ContextShape(n_kv_cells=2048, n_batch=512, n_sequences=8, n_threads=1, kv_type="f32")
RANK = 32
Logits = npt.NDArray[np.float32]


@pytest.fixture(scope="session")
def library() -> Library:
    """llama.cpp, started once."""
    return Library()


def load(library: Library, path: Path) -> Model:
    """A model on the device of the tests."""
    return Model(library, path, placement=placement(), on_progress=lambda _: True)


@pytest.fixture(scope="session")
def model(library: Library, tiny_model_f32: Path) -> Iterator[Model]:
    """The tiny Gemma in F32."""
    model = load(library, tiny_model_f32)
    yield model
    model.free()


@pytest.fixture(scope="session")
def adapters_f32(tiny_model_f32: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three adapters in F32."""
    folder = tmp_path_factory.mktemp("adapters-f32")
    for name, source in ADAPTERS.items():
        convert_adapter(source, tiny_model_f32, folder / f"{name}.gguf", "f32")
    return folder


@dataclass
class Bench:
    """A context with lanes beside a plain one: what the lanes have to equal."""

    laned: LanedContext
    plain: Context
    native: dict[str, NativeAdapter]
    files: dict[str, AdapterFile]
    lane_type: str

    def fill(self, lane: int, **scales: float) -> None:
        """Put a blend of adapters by name into a lane."""
        members = [(self.files[name], scale) for name, scale in scales.items()]
        self.laned.bank.fill(lane, lane_parts(members, self.laned.shapes, RANK, self.lane_type))

    def alone(self, tokens: Sequence[int], **scales: float) -> Logits:
        """Logits after each token, one sequence under llama.cpp's own adapters: ``[n_tokens, n_vocab]``."""
        self.plain.set_adapters([(self.native[name], scale) for name, scale in scales.items()])
        logits = []
        for position, token in enumerate(tokens):
            (row,) = self.plain.decode([Chunk(0, [token], position, wants_logits=True)])
            logits.append(self.plain.logits(row))
        self.plain.remove(0)
        return np.array(logits)

    def free(self) -> None:
        """Give everything back."""
        self.laned.free()
        self.plain.free()
        for adapter in self.native.values():
            adapter.free()
        for file in self.files.values():
            file.close()


MakeBench = Callable[..., Bench]


@pytest.fixture(scope="session")
def make_bench(model: Model, tiny_model_f32: Path, adapters_f32: Path) -> Iterator[MakeBench]:
    """A bench on the tiny Gemma in F32."""
    base = read_header(tiny_model_f32)
    benches = contextlib.ExitStack()

    def make(lane_type: str = "f32", *, has_own_results: bool = False) -> Bench:
        bank_shape = BankShape(4, RANK, lane_type, SHAPE.n_batch, has_own_results)
        bench = Bench(
            LanedContext(model, SHAPE, lora_shapes(base), bank_shape),
            Context(model, SHAPE),
            {name: NativeAdapter(model, adapters_f32 / f"{name}.gguf") for name in ADAPTERS},
            {name: AdapterFile(adapters_f32 / f"{name}.gguf", base) for name in ADAPTERS},
            lane_type,
        )
        benches.callback(bench.free)
        return bench

    with benches:
        yield make


def tokens_of(seed: str, n: int) -> list[int]:
    """``n`` tokens of the tiny vocabulary, the same for the same seed."""
    digest = hashlib.sha256(seed.encode()).digest()
    return [int(token) for token in np.random.default_rng(list(digest)).integers(4, 1024, n)]
