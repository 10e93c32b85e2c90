"""Prefixes on disk: whole or not at all, refused on any mismatch, bounded."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from runtime.engine.cache.disk import PrefixStore, SavedPrefix, identity_of
from runtime.engine.coverage import BASE_COVERAGE, Coverage
from tests.runtime.engine.values import blend

TOKENS = tuple(range(100))
PREFIX = SavedPrefix(Coverage(blend("a", "b", scale=0.25), 1), TOKENS, b"state" * 1000)


def store(folder: Path, identity: str = "this model", max_bytes: int = 1 << 20) -> PrefixStore:
    """Return a store of one model."""
    return PrefixStore(folder, identity, max_bytes)


def files_in(folder: Path) -> list[Path]:
    """Return all files of the folder, hidden ones included."""
    return sorted(folder.iterdir())


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    """Blend, scales, tokens and state come back, and a missing folder is made."""
    folder = tmp_path / "new" / "folder"
    store(folder).save(PREFIX)
    assert store(folder).has(PREFIX.coverage, TOKENS)
    assert list(store(folder).load()) == [PREFIX]


def test_every_blend_and_every_text_has_its_file(tmp_path: Path) -> None:
    """Scales, the first token under a blend, and each single token have a file of their own."""
    one = store(tmp_path)
    one.save(PREFIX)
    for other in (Coverage(blend("a", "b", scale=0.5), 1), Coverage(blend("a"), 1), BASE_COVERAGE):
        assert not one.has(other, TOKENS)
    assert not one.has(Coverage(PREFIX.coverage.blend, 2), TOKENS)
    assert not one.has(PREFIX.coverage, (*TOKENS[:-1], 7))


def test_another_models_files_are_left_alone(tmp_path: Path) -> None:
    """Files of another model are neither used nor deleted."""
    store(tmp_path, "another model").save(PREFIX)
    assert list(store(tmp_path).load()) == []
    assert len(files_in(tmp_path)) == 1


@pytest.mark.parametrize("position", [0, 40, 200, 500, -1])
def test_a_broken_file_is_deleted(tmp_path: Path, position: int, caplog: pytest.LogCaptureFixture) -> None:
    """A file with one changed byte is never used; it is logged and deleted unless it names another model."""
    one = store(tmp_path)
    one.save(PREFIX)
    (path,) = files_in(tmp_path)
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    assert list(one.load()) == []
    assert len(files_in(tmp_path)) == (1 if "deleting" not in caplog.text else 0)


@pytest.mark.parametrize("size", [0, 10, 400, -1])
def test_a_cut_file_is_deleted(tmp_path: Path, size: int) -> None:
    """A file that was cut, or is empty, is deleted."""
    one = store(tmp_path)
    one.save(PREFIX)
    (path,) = files_in(tmp_path)
    path.write_bytes(path.read_bytes()[:size])
    assert list(one.load()) == []
    assert files_in(tmp_path) == []


def test_a_file_under_anothers_name_is_deleted(tmp_path: Path) -> None:
    """A file whose name does not follow from its content is deleted."""
    one = store(tmp_path)
    one.save(PREFIX)
    (path,) = files_in(tmp_path)
    path.rename(tmp_path / f"{'0' * 40}.prefix")
    assert list(one.load()) == []
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("fields", ["[" * 60_000, '{"identity": "this model", "sha256": "%s", "n_tokens": 1e999}'])
def test_a_line_that_is_no_description_is_deleted(tmp_path: Path, fields: str) -> None:
    """A file whose first line is nested too deeply, or holds a number too large, is deleted."""
    line = fields.replace("%s", hashlib.sha256(b"").hexdigest())
    (tmp_path / f"{'0' * 40}.prefix").write_text(line + "\n")
    assert list(store(tmp_path).load()) == []
    assert files_in(tmp_path) == []


def test_what_is_no_file_is_left_alone(tmp_path: Path) -> None:
    """A folder, a dangling link and a pipe are left alone, and the prefixes beside them are loaded."""
    (tmp_path / "folder.prefix").mkdir()
    (tmp_path / "link.prefix").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.prefix")
    one = store(tmp_path)
    one.save(PREFIX)
    assert list(one.load()) == [PREFIX]
    assert len(files_in(tmp_path)) == 4


def test_another_programs_files_cause_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that may not be touched, or that another server removes meanwhile, cause no error."""
    one = store(tmp_path)
    one.save(PREFIX)

    def refuse(*_arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "utime", refuse)
    one.touch(PREFIX.coverage, TOKENS)
    one.touch(BASE_COVERAGE, TOKENS)


def test_a_disk_that_refuses_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk leaves no half-written file and one line in the log."""

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    store(tmp_path).save(PREFIX)
    assert files_in(tmp_path) == []
    assert "No space left on device" in caplog.text


def test_the_folder_is_bounded(tmp_path: Path) -> None:
    """The file used longest ago is deleted first, and a prefix larger than the bound is not written."""
    one = store(tmp_path, max_bytes=18_000)
    prefixes = [SavedPrefix(BASE_COVERAGE, (*TOKENS, number), b"x" * 5000) for number in range(4)]
    for age, prefix in enumerate(prefixes[:3]):
        one.save(prefix)
        path = max(files_in(tmp_path), key=lambda path: path.stat().st_mtime)
        os.utime(path, (age, age))
    one.touch(BASE_COVERAGE, prefixes[0].tokens)
    one.save(prefixes[3])
    assert [one.has(BASE_COVERAGE, prefix.tokens) for prefix in prefixes] == [True, False, True, True]
    one.save(SavedPrefix(BASE_COVERAGE, TOKENS, b"x" * 20_000))
    assert not one.has(BASE_COVERAGE, TOKENS)


def test_left_overs_of_a_crash_go(tmp_path: Path) -> None:
    """The file of a process that was killed while writing is removed by the next save."""
    (tmp_path / "abc.prefix.part").write_bytes(b"half")
    store(tmp_path).save(PREFIX)
    assert [path.suffix for path in files_in(tmp_path)] == [".prefix"]


def test_the_identity_is_made_of_the_model(tmp_path: Path) -> None:
    """The identity depends on header, weights, size, cache format and llama.cpp's version."""
    model = tmp_path / "model"
    model.write_bytes(b"header" + bytes(100_000))
    identities = {identity_of(model, 6, "f16", "1")}
    identities.add(identity_of(model, 6, "q8_0", "1"))
    identities.add(identity_of(model, 6, "f16", "2"))
    for content in (b"Header" + bytes(100_000), b"header" + b"\1" * 100_000, b"header" + bytes(100_001)):
        model.write_bytes(content)
        identities.add(identity_of(model, 6, "f16", "1"))
    assert len(identities) == 6
