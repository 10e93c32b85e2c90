"""Lanes on the device of this run: the self-check on all and on part of the layers, and the faults it is there for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from runtime.engine.start.prove import prove
from runtime.engine.start.selfcheck import SelfCheckError
from runtime.errors import DecodeError, ModelLoadError
from runtime.llama.lanes import bank, context, graph
from runtime.llama.lanes.graph import LaneGraph
from runtime.llama.lanes.nodes import Plan
from runtime.llama.lanes.template import Shapes
from runtime.llama.lanes.tensor import Tensor
from runtime.llama.library import Library
from tests.devices.conftest import BACKEND, MakeTask

on_rpc = pytest.mark.skipif(BACKEND != "rpc", reason="needs an RPC server")
on_blas = pytest.mark.skipif(BACKEND != "blas", reason="needs BLAS")
OFF = r"sequence \d is [\d.e+-]+ off, where probes change"
LAYERS = [0] if BACKEND == "blas" else [1, 2, 3]
"""Layers on the device of the tiny model's three; BLAS helps the processor and holds none."""


@pytest.mark.parametrize("n_layers", LAYERS)
@pytest.mark.parametrize("lane_type", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("kv_type", ["f32", "f16", "q8_0"])
def test_lanes_are_right(library: Library, make_task: MakeTask, n_layers: int, lane_type: str, kv_type: str) -> None:
    """Every type of lanes and cache passes every trial, wherever the layers are."""
    verdict = prove(library, make_task(n_layers, lane_type=lane_type, kv_type=kv_type))
    assert verdict.worst < 0.15


@pytest.mark.parametrize("n_layers", LAYERS)
def test_lanes_are_exact_in_f32(library: Library, make_task: MakeTask, tiny_model_f32: Path, n_layers: int) -> None:
    """With nothing rounded but GELU's table, lanes differ from llama.cpp's own adapters by a thousandth."""
    task = make_task(n_layers, tiny_model_f32, lane_type="f32", kv_type="f32")
    assert prove(library, task).worst < 5e-3


@pytest.mark.parametrize("setting", [{"kv_offload": "off"}, {"flash_attn": "off"}])
def test_lanes_are_right_with_keys_elsewhere(library: Library, make_task: MakeTask, setting: dict[str, str]) -> None:
    """The cache in the machine's memory, or attention of another kind, splits graphs differently."""
    assert prove(library, make_task(LAYERS[-1], **setting)).worst < 0.15


@on_rpc
def test_a_kept_graph_with_an_old_lane_is_found(
    library: Library, make_task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another lane without a walk, where the device keeps what the nodes' sources pointed at."""
    needs_no_walk = LaneGraph._needs_no_walk

    def believe_in_the_processor(self: LaneGraph, plan: Plan) -> bool:
        self._is_on_cpu = True
        return needs_no_walk(self, plan)

    monkeypatch.setattr(LaneGraph, "_needs_no_walk", believe_in_the_processor)
    with pytest.raises(SelfCheckError, match=f"one lane after the other.*{OFF}.*it is as in lane 1"):
        prove(library, make_task(3))


@on_rpc
def test_copies_without_a_name_are_found(
    library: Library, make_task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With layers on both sides the scheduler copies some of the template, and renames the copies."""
    monkeypatch.setattr(graph, "name_of", lambda address: Tensor.from_address(address).name.decode())
    with pytest.raises(ModelLoadError, match=r"llama.cpp's graph has no LoRA nodes for blk\.0\.ffn_down\.weight"):
        prove(library, make_task(2))


def test_a_walk_that_changes_nothing_is_found(
    library: Library, make_task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A callback that is armed and meets no node is found."""
    look_at = LaneGraph._look_at
    monkeypatch.setattr(LaneGraph, "_look_at", lambda self, node: self._is_rewriting or look_at(self, node))
    with pytest.raises(DecodeError, match="0 of 14 weights found in the graph"):
        prove(library, make_task(LAYERS[-1]))


@on_blas
def test_nodes_given_to_blas_are_found(library: Library, make_task: MakeTask, monkeypatch: pytest.MonkeyPatch) -> None:
    """A template of the lanes' rank is large enough for BLAS, which cannot choose a matrix for each column."""

    def write(path: Path, shapes: Shapes) -> None:
        writer = gguf.GGUFWriter(path, "gemma")
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", 32.0)
        for name, (n_in, n_out) in shapes.items():
            writer.add_tensor(name + ".lora_a", np.zeros((32, n_in), np.float16))
            writer.add_tensor(name + ".lora_b", np.zeros((n_out, 32), np.float16))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    monkeypatch.setattr(context, "write_template", write)
    with pytest.raises(DecodeError, match="BLAS was given a node that it cannot compute as MUL_MAT_ID"):
        prove(library, make_task())


def test_metals_order_is_safe(library: Library, make_task: MakeTask, as_metal: Callable[[], int]) -> None:
    """In the order that Metal's own function makes of our graphs, every trial passes."""
    assert prove(library, make_task()).worst < 0.15
    assert as_metal() > 10


@pytest.mark.parametrize(
    ("has_guard", "words"), [(True, "would overwrite the result of blk.* before it is read"), (False, OFF)]
)
def test_results_that_modules_share_are_found_in_metals_order(
    library: Library,
    make_task: MakeTask,
    as_metal: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
    *,
    has_guard: bool,
    words: str,
) -> None:
    """One memory for the results of all modules is found by the walk's own check, and by the numbers without it."""
    monkeypatch.setattr(bank, "_module_of", lambda _weight: "all")
    if not has_guard:
        monkeypatch.setattr(LaneGraph, "_write", lambda *_: None)
    with pytest.raises((DecodeError, SelfCheckError), match=words):
        prove(library, make_task())
    assert as_metal() > 0
