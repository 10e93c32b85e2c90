"""Files of strangers: what the rules let through, llama.cpp loads and runs; what would end it, the rules refuse."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from convert.errors import ConvertError
from convert.gguf.header import read_header
from convert.rules.check import validate_adapter, validate_model
from tests.faults.mutants import NativeLoader, mutant, seeds


def check_mutants(sound_path: Path, folder: Path, check: Callable[[Path], object], base: Path | None = None) -> None:
    """Assert that each mutant of a sound file is refused by ``check``, or loaded or refused by llama.cpp.

    Args:
        sound_path: a GGUF file that can be loaded.
        folder: the place of the mutants.
        check: raises ConvertError for a file that breaks the rules.
        base: the base model of an adapter.
    """
    sound, n_header = sound_path.read_bytes(), read_header(sound_path).data_offset
    path = folder / "mutant.gguf"
    ends: Counter[str] = Counter()
    bad: dict[int, str] = {}
    with contextlib.closing(NativeLoader(base)) as loader:
        for seed in seeds():
            path.write_bytes(mutant(sound, n_header, seed))
            try:
                check(path)
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


def test_mutated_base_models(tiny_model: Path, tmp_path: Path) -> None:
    """No base model that passes the rules ends or hangs llama.cpp, at load or at its first batch."""
    check_mutants(tiny_model, tmp_path, validate_model)


def test_mutated_adapters(tiny_model: Path, tiny_adapters: Path, tmp_path: Path) -> None:
    """No adapter that passes the rules ends or hangs llama.cpp."""
    base = read_header(tiny_model)
    check_mutants(tiny_adapters / "tag.gguf", tmp_path, lambda path: validate_adapter(path, base), tiny_model)
