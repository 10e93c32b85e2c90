"""``gemlane doctor`` as a whole, over the tiny Gemma."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from convert.gguf.header import read_header
from convert.rules.model import check_model
from runtime.cli import main
from runtime.config import EngineSettings
from runtime.doctor.engine import check_engine
from runtime.doctor.finding import Severity
from runtime.doctor.machine import Machine
from runtime.doctor.memory import check_memory
from runtime.engine.start.limits import need_of


def test_a_healthy_setup_has_no_fault(
    tiny_model: Path, tiny_adapters: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model is loaded, the lanes prove themselves, tokens are made, and the status is 0."""
    words = ["doctor", "--model", str(tiny_model), "--adapters", str(tiny_adapters), "--port", "0", "--threads", "1"]
    assert main([*words, "--json"]) == 0
    found = {one["topic"]: one for one in json.loads(capsys.readouterr().out)}
    assert {one["severity"] for one in found.values()} <= {"ok", "note"}
    assert "tokens at" in found["engine"]["words"]
    assert found["lanes"]["words"].startswith("the self-check found lanes within")
    assert found["adapters"]["words"] == "3 of 3 sound"


def test_a_fault_is_the_exit_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A missing model is printed with the other findings, and the status is 1."""
    assert main(["doctor", "--quick", "--model", str(tmp_path / "none.gguf"), "--port", "0"]) == 1
    text = capsys.readouterr().out
    assert "fault model" in text
    assert "1 fault, no notes" in text


def test_a_misspelled_setting_is_a_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A key of the file that no setting has is a fault that names the one meant; the machine is still examined."""
    file = tmp_path / "gemlane.toml"
    file.write_text("n_ctxt = 512\n")
    assert main(["doctor", "--quick", "--config", str(file)]) == 1
    text = " ".join(capsys.readouterr().out.split())
    assert "fault settings" in text
    assert "did you mean 'n_ctx'?" in text
    assert "ok processor" in text


def test_memory_is_what_the_shapes_say(tiny_model: Path) -> None:
    """Cache and lanes grow with their settings and nothing else, by the sizes of their number formats."""
    header = read_header(tiny_model)
    summary = check_model(header)
    small = need_of(EngineSettings(kv_cells=1024, lanes=1), header, summary)
    large = need_of(EngineSettings(kv_cells=2048, lanes=3), header, summary)
    assert large.cache == 2 * small.cache
    assert large.lanes == 2 * small.lanes  # lane 0 of the base model counts as one more
    sizes = summary.hyperparameters
    assert small.cache == 2 * sizes.n_layers * 1024 * sizes.n_kv_heads * sizes.head_dim * 2
    assert need_of(EngineSettings(adapter_batching="grouped"), header, summary).lanes == 0


def test_memory_that_does_not_suffice_is_told_with_the_way_out(tiny_model: Path) -> None:
    """A cache beyond the memory is a fault; a tight fit is a note; each names the settings that help."""
    header = read_header(tiny_model)
    settings = EngineSettings(kv_cells=4096)
    need = need_of(settings, header, check_model(header))
    machine = Machine(frozenset(), 2, None, need.total // 2, "available")
    finding = check_memory(settings, header, check_model(header), machine)
    assert finding.severity is Severity.FAULT
    assert "--kv-type q8_0 halves the cache" in finding.advice
    tight = check_memory(settings, header, check_model(header), dataclasses.replace(machine, memory_bytes=need.total))
    assert tight.severity is Severity.NOTE
    roomy = check_memory(
        settings, header, check_model(header), dataclasses.replace(machine, memory_bytes=10 * need.total)
    )
    assert roomy.severity is Severity.OK


def test_an_engine_that_cannot_load_says_why(tiny_model: Path, tmp_path: Path) -> None:
    """The fault of an engine that cannot load has the engine's own words."""
    (finding,) = check_engine(
        EngineSettings(model=str(tmp_path / "none.gguf")), read_header(tiny_model), lambda _fraction: None
    )
    assert finding.severity is Severity.FAULT
    assert "none.gguf" in finding.words


def test_grouped_batches_are_a_note(tiny_model: Path) -> None:
    """A note says that lanes are switched off."""
    settings = EngineSettings(model=str(tiny_model), adapter_batching="grouped", threads=1)
    findings = list(check_engine(settings, read_header(tiny_model), lambda _fraction: None))
    assert [one.severity for one in findings] == [Severity.OK, Severity.NOTE]
    assert findings[1].words == "off: --adapter-batching grouped"
