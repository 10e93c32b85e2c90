"""Files of strangers: what the rules let through, llama.cpp loads and runs; what would end it, the rules refuse."""

from __future__ import annotations

import contextlib
from collections import Counter
from pathlib import Path

from convert.errors import ConvertError
from convert.gguf.header import read_header
from convert.rules.check import validate_adapter, validate_model
from tests.faults.mutants import NativeLoader, mutant, seeds


def test_mutated_base_models(tiny_model: Path, tmp_path: Path) -> None:
    """No base model that passes the rules ends or hangs llama.cpp, at load or at its first batch."""
    sound, n_header = tiny_model.read_bytes(), read_header(tiny_model).data_offset
    ends: Counter[str] = Counter()
    bad: dict[int, str] = {}
    with contextlib.closing(NativeLoader()) as loader:
        for seed in seeds():
            path = tmp_path / "mutant.gguf"
            path.write_bytes(mutant(sound, n_header, seed))
            try:
                validate_model(path)
            except ConvertError:
                ends["refused by the rules"] += 1
                continue
            answer = loader.try_file(path)
            ends[answer.partition(" ")[0]] += 1
            if not answer.startswith(("loaded", "refused")):
                bad[seed] = answer
    print(dict(ends))
    assert bad == {}
    assert ends["refused by the rules"] > sum(ends.values()) / 4
    assert ends["loaded"] > sum(ends.values()) / 20


def test_mutated_adapters(tiny_model: Path, tiny_adapters: Path, tmp_path: Path) -> None:
    """No adapter that passes the rules ends or hangs llama.cpp."""
    sound_path = tiny_adapters / "tag.gguf"
    sound, n_header = sound_path.read_bytes(), read_header(sound_path).data_offset
    base = read_header(tiny_model)
    ends: Counter[str] = Counter()
    bad: dict[int, str] = {}
    with contextlib.closing(NativeLoader(tiny_model)) as loader:
        for seed in seeds():
            path = tmp_path / "mutant.gguf"
            path.write_bytes(mutant(sound, n_header, seed))
            try:
                validate_adapter(path, base)
            except ConvertError:
                ends["refused by the rules"] += 1
                continue
            answer = loader.try_file(path)
            ends[answer.partition(" ")[0]] += 1
            if not answer.startswith(("loaded", "refused")):
                bad[seed] = answer
    print(dict(ends))
    assert bad == {}
    assert ends["refused by the rules"] > sum(ends.values()) / 4
    assert ends["loaded"] > sum(ends.values()) / 20
