"""The command line: exit codes, one line for each failure, no traceback."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from convert.commands.arguments import EXIT_BAD_INPUT, EXIT_INTERRUPTED, EXIT_OK, build_parser, main
from tests.tiny_gemma.files import BASE


def test_converts_model_and_adapter(
    tmp_path: Path, checkpoint_dir: Path, adapters_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Types are named as users write them; each result is one line on standard output."""
    base, adapter = tmp_path / "base.gguf", tmp_path / "tag.gguf"
    assert main(["model", str(checkpoint_dir), "-o", str(base), "--type", "Q4-K-M", "--threads", "1"]) == 0
    assert main(["adapter", str(adapters_dir / "tag"), "--base", str(base), "-o", str(adapter), "--type", "F16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert "1,443,072 parameters" in lines[0]
    assert "14 weights, rank 8" in lines[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "base.gguf",
        "base.gguf.json",
        "tag.gguf",
        "tag.gguf.json",
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["model", "nowhere", "-o", "x.gguf"], "nowhere: no such folder"),
        (
            ["model", "{base}", "-o", "x.gguf", "--type", "q4_x"],
            "unknown type 'q4_x'; choose one of f32, f16",
        ),
        (["model", "{base}", "-o", "x.gguf", "--threads", "0"], "--threads must be from 1"),
        (["model", "{base}", "-o", "no/where/x.gguf"], "no such directory"),
        (["model", "{base}", "-o", "."], "a directory; name the file"),
        (["model", "{tag}", "-o", "x.gguf"], "an adapter, not a model"),
        (["adapter", "{base}", "--base", "{base}", "-o", "x.gguf"], "no adapter_config.json"),
        (["adapter", "{tag}", "--base", "nowhere", "-o", "x.gguf"], "nowhere: cannot be opened"),
        (["adapter", "{tag}", "--base", "{tag}/adapter_config.json", "-o", "x.gguf"], "not a GGUF file"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    checkpoint_dir: Path,
    adapters_dir: Path,
) -> None:
    """Bad input gives exit code 2 and one line on standard error, and leaves nothing behind."""
    monkeypatch.chdir(tmp_path)
    places = {"base": checkpoint_dir, "tag": adapters_dir / "tag"}
    assert main([argument.format(**places) for argument in arguments]) == EXIT_BAD_INPUT
    error = capsys.readouterr().err
    assert words in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_has_seen_enough_is_no_error(checkpoint_dir: Path) -> None:
    """A reader that closes the pipe, as `head` does, gives exit code 0 and no traceback."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as output:
        done = subprocess.run(
            [sys.executable, "-m", "convert", "inspect", str(checkpoint_dir)],
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
            stdout=output,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_ended_conversion_leaves_nothing(number: signal.Signals, tmp_path: Path, checkpoint_dir: Path) -> None:
    """Ctrl-C, SIGTERM and SIGKILL in the middle of writing: no file, and a rerun works."""
    program = (
        "import os, signal, sys\n"
        "from convert.commands import arguments\n"
        "from convert.gguf import writer\n"
        # A shell that starts the tests in the background has them ignore Ctrl-C.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def stop(n):\n"
        f"    os.kill(os.getpid(), {int(number)})\n"
        "write = writer.write_gguf\n"
        "import convert.conversion.conversion\n"
        "convert.conversion.conversion.write_gguf = lambda *a, **k: write(*a, **(k | {'progress': stop}))\n"
        f"sys.exit(arguments.main(['model', {str(checkpoint_dir)!r}, '-o', 'base.gguf', '--type', 'f16']))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == (-signal.SIGKILL if number == signal.SIGKILL else EXIT_INTERRUPTED)
    assert "Traceback" not in ended.stderr
    assert list(tmp_path.iterdir()) == []
    assert main(["model", str(checkpoint_dir), "-o", str(tmp_path / "base.gguf"), "--type", "f16"]) == 0


@pytest.mark.parametrize("command", ["model", "adapter", "merge", "inspect", "verify"])
def test_every_command_shows_examples_that_parse(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The help of each command ends with lines to copy, and its own parser takes every one of them."""
    with pytest.raises(SystemExit):
        main([command, "--help"])
    examples = capsys.readouterr().out.partition("examples:\n")[2].splitlines()
    assert len(examples) >= 2
    for example in examples:
        words = example.split()
        assert words[:2] == ["convert", command]
        assert build_parser().parse_args(words[1:]).command == command


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapters_dir: Path) -> None:
    """Paths of every command take ~, also with a scale behind them."""
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(BASE, tmp_path / "base")
    shutil.copytree(adapters_dir / "tag", tmp_path / "tag")
    assert main(["merge", "~/base", "~/tag:0.5", "-o", "~/merged.gguf", "--type", "q8_0"]) == EXIT_OK
    assert main(["inspect", "~/merged.gguf"]) == EXIT_OK
    assert (tmp_path / "merged.gguf").exists()
