"""The progress of a conversion is shown, and its cost is estimated."""

import itertools
import sys
from pathlib import Path

import pytest

from convert.commands.arguments import main
from convert.conversion import progress


def test_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal a line on standard error shows the share done and the time left, every few seconds."""
    clock = itertools.count(0.0, 3.0)
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with progress.byte_progress("x.gguf", 100_000_000) as update:
        for _ in range(4):
            update(25_000_000)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "x.gguf: 50% of 100 MB, 6 s left",
        "x.gguf: 100% of 100 MB, 0 s left",
    ]


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On a terminal a bar counts bytes."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress.byte_progress("x.gguf", 1000) as update:
        update(1000)
    assert "100%" in capsys.readouterr().err


def test_a_dry_run_tells_and_writes_nothing(
    tmp_path: Path, checkpoint_dir: Path, adapters_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dry run prints types, sizes, memory and time, and writes no file."""
    output = str(tmp_path / "x.gguf")
    assert main(["model", str(checkpoint_dir), "-o", output, "--dry-run", "--threads", "1"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "Q6_K 3 tensors" in told
    assert "total 20 tensors 0.9 MB" in told
    assert "memory about" in told
    tag = str(adapters_dir / "tag")
    assert main(["adapter", tag, "--base", str(checkpoint_dir), "-o", output, "--dry-run"]) == 0
    assert "F16 14 tensors" in " ".join(capsys.readouterr().out.split())
    assert list(tmp_path.iterdir()) == []
