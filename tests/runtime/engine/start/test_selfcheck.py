"""The self-check under injected faults: each is found, named, and leads to grouped batches with right answers."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import logging
import os
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime.config import EngineSettings
from runtime.engine.start.prove import ProofTask, prove
from runtime.engine.start.selfcheck import SelfCheckError
from runtime.engine.start.startup import Hooks, start
from runtime.engine.start.trials import trials
from runtime.errors import DecodeError, ModelLoadError
from runtime.llama import ggml
from runtime.llama.lanes import bank, tensor
from runtime.llama.lanes import context as laned
from runtime.llama.lanes.bank import Bank
from runtime.llama.lanes.graph import LaneGraph
from runtime.llama.lanes.nodes import Mode, WeightNodes
from runtime.llama.lanes.tensor import Ops
from runtime.llama.lanes.weights import LanePart
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


def kept_graph(patch: pytest.MonkeyPatch) -> None:
    """A device that keeps a graph goes on with the lane that its matrices showed when it was built."""
    point_at = WeightNodes.point_at
    is_walking: list[int] = []
    look_at = LaneGraph._look_at

    def look(self: LaneGraph, node: int) -> None:
        is_walking.append(node)
        look_at(self, node)
        is_walking.pop()

    patch.setattr(LaneGraph, "_look_at", look)
    patch.setattr(WeightNodes, "point_at", lambda self, lane: point_at(self, lane) if is_walking else None)


def stale_base(patch: pytest.MonkeyPatch) -> None:
    """A batch without adapters leaves the sums of the batch before in place."""
    rewrite = WeightNodes._rewrite_out
    patch.setattr(WeightNodes, "_rewrite_out", lambda self, out: self.mode is Mode.NONE or rewrite(self, out))


def narrow_kernel(patch: pytest.MonkeyPatch) -> None:
    """Columns from the 33rd on take another kernel, which reads the wrong lane."""
    set_ids = Bank.set_ids

    def cut(self: Bank, of_tokens: Any, of_outputs: Any) -> None:
        of_tokens = of_tokens.copy()
        of_tokens[32:] = 2
        set_ids(self, of_tokens, of_outputs)

    patch.setattr(Bank, "set_ids", cut)


OFF = r"sequence \d is [\d.e+-]+ off, where probes change"


def no_space(patch: pytest.MonkeyPatch) -> None:
    """The disk is full."""

    def refuse(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    patch.setattr(os, "fsync", refuse)


AT_ONCE = {
    wrong_layout: "a tensor takes 376 bytes, not 368",
    no_memory: "not enough memory for 8 lanes of rank 32",
    no_space: "in the folder for temporary files, template.gguf: cannot be written: No space left on device",
}
"""Faults that show before anything is served, each with the words that its reason holds."""
IN_TRIALS = {
    wrong_layout: "a tensor takes 376 bytes, not 368",
    wrong_lane: OFF,
    wrong_offset: OFF,
    wrong_op: OFF,
    unknown_op: "0 of 14 weights found in the graph",
    wrong_ids: f"{OFF}.*it is as in lane 1",
    corrupted_bank: r"the bank does not hold what was written for blk\.1\.ffn_down\.weight",
    blind_walk: "0 of 14 weights found in the graph",
    kept_graph: f"one lane after the other.*{OFF}.*it is as in lane 1",
    stale_base: f"one lane after the other.*{OFF}",
    narrow_kernel: f"a batch of 33.*{OFF}",
}
"""Faults that the whole self-check shows."""


def task_of(path: Path) -> ProofTask:
    """The tiny model on the processor."""
    settings = EngineSettings(model=str(path), threads=1)
    return ProofTask(settings, n_batch=512, n_device_layers=0, n_layers=2)


@pytest.mark.parametrize(("fault", "words"), AT_ONCE.items(), ids=[fault.__name__ for fault in AT_ONCE])
def test_a_fault_at_the_start_means_grouped_batches_and_right_answers(
    fault: Fault, words: str, make_driver: MakeDriver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault is logged in one line that names it, and every adapter answers as it should."""
    fault(monkeypatch)
    with caplog.at_level(logging.WARNING, "gemlane.engine"):
        driver = make_driver(adapter_batching="auto", state_dir=None)
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


@pytest.mark.parametrize(("fault", "words"), IN_TRIALS.items(), ids=[fault.__name__ for fault in IN_TRIALS])
def test_the_whole_check_finds_a_fault(
    fault: Fault, words: str, library: Library, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason names the trial and what is wrong in it."""
    fault(monkeypatch)
    with pytest.raises((SelfCheckError, DecodeError, ModelLoadError), match=words):
        prove(library, task_of(tiny_model))


def test_sound_lanes_pass_whatever_their_type(library: Library, tiny_model: Path) -> None:
    """Without a fault every difference is well within the bound."""
    for lane_type, kv_type in (("q8_0", "f16"), ("f16", "q8_0"), ("f32", "f32")):
        task = task_of(tiny_model)
        settings = dataclasses.replace(task.settings, lane_type=lane_type, kv_type=kv_type)
        assert prove(library, dataclasses.replace(task, settings=settings)).worst < 0.1


def test_mixed_batches_that_are_insisted_on_are_a_failed_start(
    library: Library, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ``mixed`` lanes that cannot be had end the start; nothing falls back."""
    wrong_layout(monkeypatch)
    settings = EngineSettings(model=str(tiny_model), threads=1, adapter_batching="mixed")
    with pytest.raises(ModelLoadError, match=r"mixed batches are not possible here: this llama\.cpp is not the one"):
        start(library, settings, Hooks())


def test_grouped_batches_that_are_asked_for_have_that_as_their_reason(make_driver: MakeDriver) -> None:
    """Grouped batches that were asked for need no proof, and the reason says that they were."""
    ready = make_driver(adapter_batching="grouped").ready
    assert (ready.adapter_batching, ready.batching_reason) == ("grouped", "asked for")


def test_every_change_between_modes_is_tried() -> None:
    """All nine pairs of none, one and mixed follow one another in one trial, each state on a graph used three times."""
    (trial,) = (trial for trial in trials(512) if "every order" in trial.name)
    modes = ["none" if set(lanes) == {0} else "one" if len(set(lanes)) == 1 else "mixed" for lanes in trial.rounds]
    assert len(set(itertools.pairwise(modes))) == 9
    assert max(len(list(same)) for _, same in itertools.groupby(trial.rounds)) >= 3


def test_every_width_at_which_kernels_change_is_tried() -> None:
    """Trials have widths on both sides of each change of kernels, with one lane and several, and the widest batch."""
    names = [trial.name for trial in trials(512)]
    for width in (8, 9, 31, 32, 33, 64, 65, 512):
        assert f"a batch of {width}" in names
    assert max(sum(batch) for trial in trials(40) for batch in trial.batches) == 40
