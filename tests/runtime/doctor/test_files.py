"""What doctor says of files, tokens and addresses."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from runtime.config import EngineSettings, ServerSettings, Settings
from runtime.doctor import files
from runtime.doctor.finding import Severity


def settings(model: str = "", **server: object) -> Settings:
    """Settings with a model and what the test says of the server."""
    return Settings(EngineSettings(model=model), ServerSettings(**server))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no such file"), (b"", "not a gguf file"), (b"GGUF\x03\x00\x00\x00", "ends")],
)
def test_an_unusable_model_is_a_fault(tmp_path: Path, content: bytes | None, words: str) -> None:
    """A missing, an empty and a cut file each have their reason, and the command that makes a new one."""
    path = tmp_path / "base.gguf"
    if content is not None:
        path.write_bytes(content)
    model, finding = files.check_model(settings(str(path)))
    assert model is None
    assert finding.severity is Severity.FAULT
    assert words in finding.words.lower()
    assert "gemlane convert model" in finding.words


def test_no_model_is_a_note() -> None:
    """Without a model nothing is checked, and that is not a fault."""
    model, finding = files.check_model(settings())
    assert model is None
    assert finding.severity is Severity.NOTE


def test_tokens_are_checked_as_the_server_does(tmp_path: Path) -> None:
    """An open address without tokens and an empty file are faults; a file that others read is a note."""
    assert files.check_tokens(ServerSettings()).severity is Severity.OK
    outside = files.check_tokens(ServerSettings(host="0.0.0.0"))  # noqa: S104 - that is the question
    assert outside.severity is Severity.FAULT
    assert "--token-file" in outside.words
    path = tmp_path / "tokens"
    path.write_text("\n")
    assert files.check_tokens(ServerSettings(token_file=str(path))).severity is Severity.FAULT
    path.write_text("secret\n")
    path.chmod(0o644)
    readable = files.check_tokens(ServerSettings(token_file=str(path)))
    assert (readable.severity, readable.advice) == (Severity.NOTE, f"chmod 600 {path}")
    path.chmod(0o600)
    assert files.check_tokens(ServerSettings(token_file=str(path))).severity is Severity.OK


def test_an_address_in_use_is_a_fault() -> None:
    """The address and the reason are named; a free port is fine, and an unknown host is a fault without a trace."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        finding = files.check_address(ServerSettings(port=port))
    assert finding.severity is Severity.FAULT
    assert finding.words == f"127.0.0.1 port {port}: Address already in use"
    assert files.check_address(ServerSettings(port=port)).severity is Severity.OK
    assert files.check_address(ServerSettings(host="no.such.host.invalid")).severity is Severity.FAULT


def test_a_prefix_folder_that_others_may_write_is_a_fault(tmp_path: Path) -> None:
    """Saved prefixes are read back into native memory, so the folder has to be the server's alone."""
    folder = tmp_path / "prefixes"
    assert [one.words for one in files.check_prefix_dir(str(folder))] == [f"{folder} will be made"]
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    (finding,) = files.check_prefix_dir(str(folder))
    assert (finding.severity, finding.advice) == (Severity.FAULT, f"chmod 700 {folder}")
    folder.chmod(0o700)
    assert [one.severity for one in files.check_prefix_dir(str(folder))] == [Severity.OK]
    assert list(files.check_prefix_dir("")) == []
