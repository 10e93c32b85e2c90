"""The self-check caught lying: whatever is wrong with the lanes, the engine says so, groups, and answers right."""

from __future__ import annotations

import dataclasses
import logging
import re
import types
from collections.abc import Callable
from typing import Any

import pytest

from runtime.config import EngineSettings
from runtime.engine.start.startup import start
from runtime.errors import ModelLoadError
from runtime.llama import ggml
from runtime.llama.lanes import bank, tensor
from runtime.llama.lanes import context as laned
from runtime.llama.lanes.bank import Bank, LanePart
from runtime.llama.lanes.graph import LaneGraph
from runtime.llama.lanes.nodes import WeightNodes
from runtime.llama.lanes.tensor import Ops
from runtime.llama.library import Library
from tests.runtime.engine.conftest import MakeDriver
from tests.tiny_gemma.facts import ANSWERS, QUESTIONS, STYLES

Fault = Callable[[pytest.MonkeyPatch], None]


def wrong_layout(patch: pytest.MonkeyPatch) -> None:
    """A library whose tensors are larger than ours."""
    patch.setattr(ggml, "tensor_overhead", lambda: 376)


def wrong_lane(patch: pytest.MonkeyPatch) -> None:
    """The matrices of the lane beside."""
    point_at = WeightNodes.point_at
    patch.setattr(WeightNodes, "point_at", lambda self, lane: point_at(self, lane % 2 + 1))


def wrong_offset(patch: pytest.MonkeyPatch) -> None:
    """Every product reads its columns four bytes off."""
    take = WeightNodes.__init__

    def shift(self: WeightNodes, *arguments: Any, **options: Any) -> None:
        take(self, *arguments, **options)
        self._x_rows.data += 4

    patch.setattr(WeightNodes, "__init__", shift)


def wrong_op(patch: pytest.MonkeyPatch) -> None:
    """Another operation where the chosen product should be."""
    prove = tensor.prove_layout

    def lie() -> Ops:
        ops = prove()
        return dataclasses.replace(ops, mul_mat_id=ops.none)

    patch.setattr(laned, "prove_layout", lie)


def unknown_op(patch: pytest.MonkeyPatch) -> None:
    """Sums are not found in the graph."""
    prove = tensor.prove_layout
    patch.setattr(laned, "prove_layout", lambda: dataclasses.replace(prove(), add=99))


def wrong_ids(patch: pytest.MonkeyPatch) -> None:
    """Every token in lane 1."""
    set_ids = Bank.set_ids
    patch.setattr(Bank, "set_ids", lambda self, tokens, outputs: set_ids(self, tokens * 0 + 1, outputs * 0 + 1))


def corrupted_bank(patch: pytest.MonkeyPatch) -> None:
    """One byte of one matrix falls over."""
    write = Bank._write

    def corrupt(self: Bank, lane: int, part: LanePart) -> None:
        if part.name.startswith("blk.1.ffn_down"):
            part = LanePart(part.name, part.a, part.b.copy(), part.rank)
            part.b[7] ^= 0x40
        write(self, lane, part)

    patch.setattr(Bank, "_write", corrupt)


def no_memory(patch: pytest.MonkeyPatch) -> None:
    """The bank cannot be allocated, though the proof of the layout can."""
    without_memory = types.SimpleNamespace(**{**vars(ggml), "alloc_tensors": lambda *_: None})
    patch.setattr(bank, "ggml", without_memory)


def blind_walk(patch: pytest.MonkeyPatch) -> None:
    """The callback is armed, and meets no node."""
    look_at = LaneGraph._look_at
    patch.setattr(LaneGraph, "_look_at", lambda self, node: None if self._is_rewriting else look_at(self, node))


OFF = r"sequence \d is [\d.e+-]+ off, where probes change"
FAULTS = {
    wrong_layout: "a tensor takes 376 bytes, not 368",
    wrong_lane: OFF,
    wrong_offset: OFF,
    wrong_op: OFF,
    unknown_op: "0 of 14 weights found in the graph",
    wrong_ids: OFF,
    corrupted_bank: r"the bank does not hold what was written for blk\.1\.ffn_down\.weight",
    no_memory: "not enough memory for 8 lanes of rank 32",
    blind_walk: "0 of 14 weights found in the graph",
}
"""Each with the words that its reason holds."""


@pytest.mark.parametrize(("fault", "words"), FAULTS.items(), ids=[fault.__name__ for fault in FAULTS])
def test_a_fault_means_grouped_batches_and_right_answers(
    fault: Fault, words: str, make_driver: MakeDriver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault is logged in one line that names it, and every adapter answers as it should."""
    fault(monkeypatch)
    with caplog.at_level(logging.WARNING, "gemlane.engine"):
        driver = make_driver(adapter_batching="auto")
    monkeypatch.undo()
    assert driver.ready.adapter_batching == "grouped"
    assert re.match(f"mixed batches are not possible here: .*{words}", driver.ready.batching_reason)
    lines = [record.message for record in caplog.records if record.name == "gemlane.engine"]
    assert lines == [f"{driver.ready.batching_reason}; falling back to one adapter a batch"]
    outcomes = {style: driver.submit(style, QUESTIONS[0], driver.voice(style)) for style in STYLES}
    driver.run()
    assert {style: outcome.text for style, outcome in outcomes.items()} == {
        style: ANSWERS[style][QUESTIONS[0]] for style in STYLES
    }


def test_sound_lanes_are_mixed_and_say_so(make_driver: MakeDriver) -> None:
    """Without a fault: well within the bound, whatever the lanes' type."""
    for lane_type in ("q8_0", "f16", "f32"):
        driver = make_driver(lane_type=lane_type)
        assert driver.ready.adapter_batching == "mixed"
        assert "within" in driver.ready.batching_reason


def test_whoever_insists_on_mixed_batches_gets_no_others(
    library: Library, tiny_model: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forced, a failed self-check is a failed start."""
    wrong_ids(monkeypatch)
    settings = EngineSettings(model=str(tiny_model), threads=1, adapter_batching="mixed")
    with pytest.raises(ModelLoadError, match="mixed batches are not possible here"):
        start(library, settings, on_progress=lambda _: True, on_prepared=lambda: None)


def test_whoever_asks_for_grouped_batches_gets_them(make_driver: MakeDriver) -> None:
    """And the reason is that."""
    ready = make_driver(adapter_batching="grouped").ready
    assert (ready.adapter_batching, ready.batching_reason) == ("grouped", "asked for")
