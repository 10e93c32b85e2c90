"""The lock of adapters: the file, and what it lets through."""

from __future__ import annotations

import hashlib
import re
import subprocess
from pathlib import Path

import aiohttp
import pytest

from runtime.adapters.life import AdapterState
from runtime.adapters.lock import check_locked, read_lock
from runtime.adapters.store import Store
from runtime.config import EngineSettings, ServerSettings, Settings
from runtime.doctor.adapters import check_adapters
from runtime.doctor.finding import Severity
from runtime.errors import ConfigError, InvalidAdapter
from tests.end_to_end.serving import serving
from tests.runtime.conftest import PIRATE, PIRATE_FILE, put
from tests.runtime.double import ScriptedEngine

A, B = "a" * 64, "b" * 64


def test_a_lock_is_read_as_sha256sum_writes_it(tmp_path: Path) -> None:
    """Both separators of ``sha256sum``, comments, and the file's suffix are understood."""
    path = tmp_path / "adapters.lock"
    path.write_text(f"# approved on Monday\n\n{A}  pirate.gguf\n{B} *my adapter\n")
    assert read_lock(path) == {"pirate": A, "my adapter": B}


def test_sha256sum_makes_a_lock(tmp_path: Path) -> None:
    """The documented command gives a lock of the folder's files."""
    (tmp_path / "pirate.gguf").write_bytes(b"weights")
    made = subprocess.run(["sha256sum", "pirate.gguf"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    path = tmp_path / "adapters.lock"
    path.write_text(made)
    assert read_lock(path) == {"pirate": hashlib.sha256(b"weights").hexdigest()}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("abc  pirate\n", "line 1: not of the form 'SHA256  NAME'"),
        (f"{A}\n", "line 1: not of the form"),
        (f"{A}  pirate\n{B}  pirate.gguf\n", "line 2: 'pirate' stands twice"),
    ],
)
def test_a_broken_lock_is_refused(tmp_path: Path, content: str, words: str) -> None:
    """A line that is not understood could leave an adapter unlocked, so the server does not start."""
    path = tmp_path / "adapters.lock"
    path.write_text(content)
    with pytest.raises(ConfigError, match=re.escape(words)):
        read_lock(path)


def test_a_missing_lock_is_refused(tmp_path: Path) -> None:
    """The error for a lock file that is missing names the option and the reason."""
    with pytest.raises(ConfigError, match=r"cannot read --require-locked .*No such file"):
        read_lock(tmp_path / "none")


def test_name_and_content_have_to_agree() -> None:
    """The right content under another name, and another content under the right name, are both refused."""
    check_locked({"pirate": A}, "pirate", A)
    with pytest.raises(InvalidAdapter, match=f"is not in the list of --require-locked; add the line: {A}  shout"):
        check_locked({"pirate": A}, "shout", A)
    with pytest.raises(InvalidAdapter, match=f"has the SHA-256 {B}, and --require-locked wants {A}"):
        check_locked({"pirate": A}, "pirate", B)


def test_composed_and_decomposed_names_are_one() -> None:
    """A name in the lock matches an adapter whose file system decomposes letters."""
    check_locked({"\u00e9toile": A}, "e\u0301toile", A)


async def test_the_store_serves_what_is_locked_and_nothing_else() -> None:
    """An adapter outside of the lock is shown as refused, and the engine never hears of it."""
    engine = ScriptedEngine()
    locked = Store(engine, 100, lambda _: None, lock={PIRATE.name: PIRATE_FILE.digest})
    await put(locked, PIRATE, PIRATE_FILE)
    assert [view.state for view in locked.snapshot()] == [AdapterState.READY]
    other = ScriptedEngine()
    refusing = Store(other, 100, lambda _: None, lock={})
    with pytest.raises(InvalidAdapter, match="is not in the list"):
        await put(refusing, PIRATE, PIRATE_FILE)
    assert [view.state for view in refusing.snapshot()] == [AdapterState.REFUSED]
    assert not other.adapters


async def test_a_server_serves_the_locked_adapters_alone(tiny_model: Path, tiny_adapters: Path, tmp_path: Path) -> None:
    """The one locked file of two answers, the other is an error, and doctor names it."""
    lock, pirate = tmp_path / "adapters.lock", (tiny_adapters / "pirate.gguf").read_bytes()
    lock.write_text(f"{hashlib.sha256(pirate).hexdigest()}  pirate.gguf\n")
    folder = tmp_path / "adapters"
    folder.mkdir()
    for name in ("pirate", "shout"):
        (folder / f"{name}.gguf").write_bytes((tiny_adapters / f"{name}.gguf").read_bytes())
    flags = ("--require-locked", str(lock))
    with serving(tiny_model, folder, *flags) as server:
        async with aiohttp.ClientSession() as session:
            for name, is_locked in (("pirate", True), ("shout", False)):
                body = {"prompt": "Hi", "lora": name, "max_tokens": 1}
                async with session.post(server.run_url, json=body) as response:
                    assert (response.status == 200) == is_locked, await response.text()
    settings = Settings(
        EngineSettings(model=str(tiny_model)), ServerSettings(adapters=str(folder), require_locked=str(lock))
    )
    refused, sound = check_adapters(settings, converts=True)
    assert refused.severity is Severity.FAULT
    assert refused.words.startswith("shout.gguf is refused: adapter shout is not in the list of --require-locked")
    assert sound.words == "1 of 2 sound"
