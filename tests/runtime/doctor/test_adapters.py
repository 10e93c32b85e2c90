"""What doctor says of the adapters folder: what the server would."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from runtime.config import EngineSettings, ServerSettings, Settings
from runtime.doctor.adapters import check_adapters
from runtime.doctor.finding import Severity
from tests.tiny_gemma.files import ADAPTERS


def settings(model: Path, folder: Path) -> Settings:
    """A model and a folder of adapters."""
    return Settings(EngineSettings(model=str(model)), ServerSettings(adapters=str(folder)))


def test_every_refused_adapter_is_named(tiny_model: Path, tiny_adapters: Path, tmp_path: Path) -> None:
    """A sound adapter counts; a broken one and a FIFO are named with their reasons, and nothing blocks."""
    good = next(tiny_adapters.glob("*.gguf"))
    (tmp_path / "good.gguf").write_bytes(good.read_bytes())
    (tmp_path / "broken.gguf").write_bytes(good.read_bytes()[:1000])
    os.mkfifo(tmp_path / "pipe.gguf")
    broken, pipe, counted = check_adapters(settings(tiny_model, tmp_path), converts=True)
    assert [one.severity for one in (broken, pipe, counted)] == [Severity.FAULT, Severity.FAULT, Severity.OK]
    assert broken.words.startswith("broken.gguf is refused: ")
    assert pipe.words == "pipe.gguf is refused: not a regular file"
    assert counted.words == "1 of 3 sound"


def test_folders_are_converted_as_a_trial(tiny_model: Path, tmp_path: Path) -> None:
    """A PEFT folder counts once it converts; another has the converter's reason; nothing is written to the folder."""
    shutil.copytree(ADAPTERS["pirate"], tmp_path / "pirate")
    shutil.copytree(ADAPTERS["pirate"], tmp_path / "tuned")
    config = tmp_path / "tuned" / "adapter_config.json"
    config.write_text(config.read_text().replace('"LORA"', '"IA3"'))
    before = sorted(path.name for path in tmp_path.rglob("*"))
    tuned, counted = check_adapters(settings(tiny_model, tmp_path), converts=True)
    assert tuned.severity is Severity.FAULT
    assert "only LORA adapters are converted" in tuned.words
    assert counted.words == "1 of 2 sound"
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
    quick = list(check_adapters(settings(tiny_model, tmp_path), converts=False))
    assert [one.words for one in quick] == ["2 of 2 sound", "2 of them have to be converted"]


def test_what_is_no_adapter_is_a_note(tiny_model: Path, tmp_path: Path) -> None:
    """A folder that waits for a file, and a file of another kind, are notes and not faults."""
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "adapter_config.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("mine")
    findings = list(check_adapters(settings(tiny_model, tmp_path), converts=True))
    assert [one.severity for one in findings] == [Severity.NOTE, Severity.NOTE, Severity.OK]
    assert findings[0].words.startswith("notes.txt is left out: ")
    assert findings[1].words.startswith("half waits for adapter_model.safetensors")


@pytest.mark.parametrize(("name", "what"), [("none", "no such folder"), ("file", "not a folder")])
def test_a_missing_folder_is_a_fault(tiny_model: Path, tmp_path: Path, name: str, what: str) -> None:
    """The folder that is missing, or is a file, is named with the option that names another."""
    (tmp_path / "file").touch()
    (finding,) = check_adapters(settings(tiny_model, tmp_path / name), converts=True)
    assert (finding.severity, finding.words) == (Severity.FAULT, f"{tmp_path / name}: {what}")
    assert "--adapters" in finding.advice
