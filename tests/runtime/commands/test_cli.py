"""The ``gemlane`` command: what it offers, and how fast it answers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.cli import COMMANDS, build_parser, main

ROOT = Path(__file__).resolve().parents[3]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
MAX_HELP_S = 0.15


def gemlane(*words: str) -> subprocess.CompletedProcess[str]:
    """A command of its own."""
    command = [sys.executable, "-P", "-m", "runtime.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=60, check=False)


def test_help_lists_every_command() -> None:
    """Each command of the table and of the converter stands in the help with its sentence."""
    text = build_parser("").format_help()
    for name in (*(command.name for command in COMMANDS), "convert", "merge", "inspect", "verify"):
        assert re.search(rf"^    {name}\b", text, re.MULTILINE), name


def test_help_answers_at_once() -> None:
    """The best of five runs takes less than 150 ms of processor time, and loads nothing of the server."""
    best_s = min(_processor_time_s("--help") for _ in range(5))
    assert best_s < MAX_HELP_S
    probe = "import sys, runtime.cli; runtime.cli.build_parser('').format_help(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert not {"aiohttp", "asyncio", "numpy", "llama_cpp", "gguf"} & set(done.stdout.split())


def _processor_time_s(*words: str) -> float:
    """Seconds of the processor that a command takes: a busy machine makes only the wall clock slower."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "runtime.cli", *words], stdout=subprocess.DEVNULL, env=ENVIRONMENT
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime


def test_every_command_explains_itself() -> None:
    """``gemlane COMMAND --help`` works for every command, and has a description."""
    for command in COMMANDS:
        done = gemlane(command.name, "--help")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"usage: gemlane {command.name}")


def test_the_version_names_llama_cpps_commit() -> None:
    """One line has the versions, and the commit that the library itself reports."""
    done = gemlane("--version")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(
        r"gemlane \S+ \(llama\.cpp [0-9a-f]{7,40}, llama-cpp-python 0\.3\.36, Python 3\.\d+\.\d+\)\n", done.stdout
    )


def test_without_a_command_the_help_comes_and_the_status_is_two(capsys: pytest.CaptureFixture[str]) -> None:
    """A bare ``gemlane`` is a mistake that explains itself."""
    assert main([]) == 2
    assert "gemlane COMMAND --help" in capsys.readouterr().err


def test_a_typed_error_is_one_line_and_status_two(capsys: pytest.CaptureFixture[str]) -> None:
    """An error that a user can act on is one line without a trace, and the status is 2."""
    assert main(["config", "--n-ctx", "-5"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("gemlane: --n-ctx must be")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_commands_and_settings(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The script of each shell completes the commands, and the settings of serve."""
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("doctor", "chat", "--max-lora-rank", "--imatrix"):
        assert word in script


def test_the_bash_script_is_valid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bash can read the completion script."""
    main(["completion", "bash"])
    script = tmp_path / "gemlane.bash"
    script.write_text(capsys.readouterr().out)
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_config_says_where_values_come_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flag, a variable, the file and the default are each named as the source."""
    file = tmp_path / "gemlane.toml"
    file.write_text("lanes = 4\nport = 1\n")
    monkeypatch.setenv("GEMLANE_PORT", "9000")
    assert main(["config", "--config", str(file), "--n-ctx", "512"]) == 0
    lines = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    found = {name: (value, source) for name, value, source in lines}
    assert found["n_ctx"] == ("512", "(--n-ctx)")
    assert found["port"] == ("9000", "(GEMLANE_PORT)")
    assert found["lanes"] == ("4", f"({file}: lanes)")
    assert found["host"] == ("127.0.0.1", "(default)")
    assert main(["config", "--config", str(file), "--set"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["lanes", "port"]
