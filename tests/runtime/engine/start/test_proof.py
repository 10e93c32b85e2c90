"""The self-check in a process of its own: its proofs are remembered, its ends are named, requests go on meanwhile."""

from __future__ import annotations

import dataclasses
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from convert.gguf.header import read_header
from runtime.config import EngineSettings
from runtime.engine.start import prove as prove_module
from runtime.engine.start import selfcheck, startup
from runtime.engine.start.few_layers import choose_layers, write_few_layers
from runtime.engine.start.model_file import check_model_file
from runtime.engine.start.proof import Proof, ProofRecords, key_of
from runtime.engine.start.prove import ProofTask, decode_task
from runtime.engine.start.provisional import ProvisionalPlaces
from runtime.engine.start.selfcheck import Verdict
from runtime.errors import ModelLoadError
from runtime.generation import BASE, Blend, BlendMember
from runtime.llama.devices import Placement
from runtime.llama.library import Library
from runtime.llama.model import Model
from runtime.messages import LANES_PROVING, LANES_WAITING
from tests.runtime.engine.conftest import Driver, MakeDriver
from tests.tiny_gemma.facts import ANSWERS, QUESTIONS, STYLES


def task_of(path: Path) -> ProofTask:
    """The tiny model on the processor."""
    return ProofTask(EngineSettings(model=str(path), threads=1), n_batch=64, n_device_layers=0, n_layers=2)


def python(code: str) -> tuple[str, ...]:
    """A stand-in for the check's process."""
    return (sys.executable, "-c", code)


def ask_everyone(driver: Driver, question: str) -> None:
    """Every adapter and the base answer as they should, in one go."""
    outcomes = {style: driver.submit(f"{style} {question}", question, driver.voice(style)) for style in STYLES}
    driver.run()
    assert {style: outcome.text for style, outcome in outcomes.items()} == {
        style: ANSWERS[style][question] for style in STYLES
    }


def test_a_task_crosses_the_pipe_unchanged(tiny_model: Path) -> None:
    """All fields, settings included, come out as they went in."""
    task = dataclasses.replace(task_of(tiny_model), folder="/somewhere")
    assert decode_task(task.encode()) == task


def test_the_process_proves_the_lanes(tiny_model: Path) -> None:
    """The real process ends with a verdict, handed over once."""
    passed: list[Verdict] = []
    ended = threading.Event()
    proof = Proof(task_of(tiny_model), passed.append, ended.set)
    assert proof.start()
    assert not proof.start()
    outcome = proof.wait(lambda: True)
    assert ended.wait(10)
    assert outcome.verdict is not None
    assert passed == [outcome.verdict]
    assert outcome.verdict.worst < 0.01
    assert "within" in outcome.reason


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import os; os.abort()", "the self-check's process ended by SIGABRT"),
        ("import sys; sys.exit(3)", "the self-check's process ended with exit code 3"),
        ("print('nonsense')", "the self-check's process ended with exit code 0"),
        ("""print('{"error": "a batch of 33: wrong"}')""", "a batch of 33: wrong"),
    ],
)
def test_what_ends_the_process_is_the_reason(tiny_model: Path, code: str, words: str) -> None:
    """A crash, an exit, nonsense and a finding each have words of their own; nothing counts as passed."""
    passed: list[Verdict] = []
    outcome = Proof(task_of(tiny_model), passed.append, lambda: None, python(code)).wait(lambda: True)
    assert (outcome.verdict, outcome.reason, passed) == (None, words, [])


def test_a_process_that_cannot_be_started_is_the_reason(tiny_model: Path) -> None:
    """The reason for a process that cannot be started has the system's words."""
    outcome = Proof(task_of(tiny_model), lambda _: None, lambda: None, ("/nowhere/python",)).wait(lambda: True)
    assert outcome.reason == "the self-check cannot be started: No such file or directory"


def test_a_check_that_is_wanted_no_more_is_stopped(tiny_model: Path) -> None:
    """A server that is stopped while it waits does not wait for the end."""
    proof = Proof(task_of(tiny_model), lambda _: None, lambda: None, python("import time; time.sleep(600)"))
    assert proof.wait(lambda: False).reason == "the self-check's process ended by SIGKILL"


def test_proofs_are_remembered_by_all_that_matters(tiny_model: Path, tmp_path: Path) -> None:
    """Another type of lanes, device, placement or model needs another proof; a longer queue or context does not."""
    task, records = task_of(tiny_model), ProofRecords(tmp_path)
    key = key_of(task, "weights", Placement())
    assert records.find(key) is None
    records.add(key, Verdict(0.03))
    assert records.find(key) == Verdict(0.03)
    assert ProofRecords(tmp_path).find(key) == Verdict(0.03)

    def other(**changes: object) -> str:
        known: dict[str, object] = changes
        settings = dataclasses.replace(task.settings, **known)  # type: ignore[arg-type]
        return key_of(dataclasses.replace(task, settings=settings), "weights", Placement())

    assert other(n_ctx=99, parallel=3, step_budget_ms=7) == key
    different = {key, other(lane_type="f16"), other(kv_type="q8_0"), other(lanes=3), other(flash_attn="off")}
    different |= {key_of(task, "other weights", Placement()), key_of(task, "weights", Placement(2))}
    assert len(different) == 7


def test_a_record_that_is_damaged_is_as_none(tmp_path: Path) -> None:
    """A damaged record counts as absent; where the folder cannot be written, nothing is remembered."""
    records = ProofRecords(tmp_path)
    records.add("a", Verdict(0.01))
    for text in ("", "{}", "[]", '{"worst": "much"}'):
        (tmp_path / "lanes-proven" / "a.json").write_text(text)
        assert records.find("a") is None
    (tmp_path / "file").touch()
    for place in (None, tmp_path / "file"):
        ProofRecords(place).add("a", Verdict(0.01))
        assert ProofRecords(place).find("a") is None
    for number in range(70):
        records.add(f"b{number}", Verdict(0.01))
    assert len(list((tmp_path / "lanes-proven").iterdir())) == 64


def test_a_few_layers_are_a_model(tiny_model: Path, tmp_path: Path) -> None:
    """The file is sound by the rules for models, and its weights are the whole model's."""
    base = read_header(tiny_model)
    layers = choose_layers(base, 1)
    assert set(layers) <= {0, 1}
    assert choose_layers(base, 9) == [0, 1]
    path = tmp_path / "few.gguf"
    write_few_layers(path, base, [1])
    few, summary = check_model_file(path)
    assert (summary.hyperparameters.n_layers, summary.hyperparameters.n_vocab) == (1, 260)
    whole, part = base.tensors["blk.1.ffn_down.weight"], few.tensors["blk.0.ffn_down.weight"]
    weights = [file.read_bytes()[one.offset :][: one.size_bytes] for file, one in ((tiny_model, whole), (path, part))]
    assert weights[0] == weights[1]


def test_requests_are_answered_while_lanes_are_proven_and_after(make_driver: MakeDriver, tmp_path: Path) -> None:
    """One adapter a batch at first, mixed from the moment the proof ends; the next start knows it."""
    driver = make_driver(adapter_batching="auto", state_dir=tmp_path)
    assert (driver.ready.adapter_batching, driver.ready.batching_reason) == ("grouped", LANES_WAITING)
    assert driver.batching == [("grouped", LANES_PROVING)]
    ask_everyone(driver, QUESTIONS[0])
    running = [driver.submit(f"running {style}", QUESTIONS[1], driver.voice(style)) for style in STYLES]
    driver.step()
    driver.await_change()
    driver.run()
    assert [outcome.text for outcome in running] == [ANSWERS[style][QUESTIONS[1]] for style in STYLES]
    (mode, reason) = driver.batching[-1]
    assert mode == "mixed"
    assert "within" in reason
    ask_everyone(driver, QUESTIONS[2])
    again = make_driver(adapter_batching="auto", state_dir=tmp_path)
    assert (again.ready.adapter_batching, again.ready.batching_reason) == ("mixed", reason)
    assert again.batching == []
    ask_everyone(again, QUESTIONS[3])


def test_a_failed_proof_leaves_batches_grouped(
    make_driver: MakeDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers go on, and the reason is the check's; the next start checks again."""
    fail = python("""print('{"error": "a batch of 33: wrong"}')""")
    monkeypatch.setattr(startup, "Proof", lambda task, on_passed, on_end: Proof(task, on_passed, on_end, fail))
    for _ in range(2):
        driver = make_driver(adapter_batching="auto", state_dir=tmp_path)
        driver.await_change()
        assert driver.batching[-1] == ("grouped", "mixed batches are not possible here: a batch of 33: wrong")
        ask_everyone(driver, QUESTIONS[0])


def test_without_an_adapter_nothing_is_proven(library: Library, tiny_model: Path) -> None:
    """The check's process starts with the first adapter."""
    changes: list[str] = []
    hooks = startup.Hooks(on_batching=lambda _mode, reason: changes.append(reason))
    settings = EngineSettings(model=str(tiny_model), threads=1)
    engine, ready = startup.start(library, settings, hooks)
    assert ready.batching_reason == LANES_WAITING
    engine.step()
    engine.close()
    assert changes == []


class Counting:
    """Places that note who enters and leaves."""

    def __init__(self) -> None:
        self.users: list[Blend] = []

    def has_place(self, _blend: Blend) -> bool:
        """Always."""
        return True

    def enter(self, blend: Blend) -> None:
        """Note it."""
        self.users.append(blend)

    def leave(self, blend: Blend) -> None:
        """Note it."""
        self.users.remove(blend)

    def expect(self, _blends: object) -> None:
        """Prepare nothing."""

    def choose(self, _blends: object) -> frozenset[Blend]:
        """Choose no blend."""
        return frozenset()


def test_a_request_that_runs_when_places_change_has_a_lane() -> None:
    """At most as many blends run at first as there are lanes; each sequence enters its blend's lane once."""
    one, two, three = (Blend((BlendMember(letter * 64, 1.0),)) for letter in "abc")
    first, later = Counting(), Counting()
    places = ProvisionalPlaces(first, later, n_lanes=2)
    for blend in (one, BASE, two, one):
        assert places.has_place(blend)
        places.enter(blend)
    assert not places.has_place(three)
    assert places.has_place(two)
    places.leave(two)
    assert places.has_place(three)
    places.enter(three)
    places.change()
    assert sorted(later.users, key=str) == sorted([one, one, three], key=str)
    assert places.has_place(two)
    places.leave(three)
    assert three not in later.users


@pytest.mark.parametrize("n_device_layers", [0, 3])
def test_mixed_batches_that_are_insisted_on_need_the_proof(
    library: Library, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, n_device_layers: int
) -> None:
    """With ``mixed`` the start waits for the proof, and ends with its reason if it fails, without moving layers."""
    loads: list[Placement] = []
    load = Model

    def note(*arguments: Any, placement: Placement, **options: Any) -> Model:
        loads.append(placement)
        return load(*arguments, placement=placement, **options)

    placement = Placement(n_device_layers)
    monkeypatch.setattr(startup, "_place", lambda _beginning: placement)
    monkeypatch.setattr(startup, "Model", note)
    fail = python("""print('{"error": "a batch of 33: wrong"}')""")
    monkeypatch.setattr(startup, "Proof", lambda task, on_passed, on_end: Proof(task, on_passed, on_end, fail))
    settings = EngineSettings(model=str(tiny_model), threads=1, adapter_batching="mixed")
    with pytest.raises(ModelLoadError, match="mixed batches are not possible here: a batch of 33: wrong"):
        startup.start(library, settings, startup.Hooks())
    assert loads == [placement]


def test_the_whole_model_is_tried_once(library: Library, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After all trials on few layers, a short one runs on the model itself, whose weights stay as its file has them."""
    runs: list[tuple[bool, tuple[str, ...]]] = []
    prove_lanes = selfcheck.prove_lanes

    def note(model: Any, laned: Any, bank_shape: Any, base: Any, trials: Any) -> Verdict:
        runs.append((model.placement.is_as_in_file, tuple(trial.name for trial in trials)))
        return prove_lanes(model, laned, bank_shape, base, trials)

    monkeypatch.setattr(prove_module, "prove_lanes", note)
    prove_module.prove(library, task_of(tiny_model))
    few, whole = runs
    assert len(few[1]) > 5
    assert (few[0], whole) == (False, (True, ("one token of each sequence",)))
