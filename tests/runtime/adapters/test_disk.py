"""The state folder: a content that comes while its last adapter goes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.adapters.check import make_check
from runtime.adapters.disk import StateDir
from runtime.adapters.intake import AdapterFiles, Intake
from runtime.adapters.known import KnownFiles, digest_of, stamp_of
from tests.runtime.adapters.crashing import CopyConverter

DIGEST = "a" * 64


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateDir]:
    """An empty state folder."""
    state = StateDir(tmp_path / "state")
    yield state
    state.close()


def test_a_blob_is_dropped_unless_it_is_arriving(state: StateDir) -> None:
    """A drop takes the file; while an adapter is about to have the content, it does not."""
    blob = state.blob(DIGEST)
    blob.write_bytes(b"x")
    with state.arriving(DIGEST):
        state.drop_blob(DIGEST)
        assert blob.exists()
    state.drop_blob(DIGEST)
    assert not blob.exists()


async def test_a_content_that_goes_as_it_comes_stays(
    state: StateDir, tiny_model: Path, tiny_adapters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upload of the same bytes as those of the adapter that is being deleted keeps its file."""
    upload = tmp_path / "upload.gguf"
    upload.write_bytes((tiny_adapters / "tag.gguf").read_bytes())
    digest, keep_blob = digest_of(upload), state.keep_blob

    def keep_and_drop(gguf: Path, digest: str) -> Path:
        place = keep_blob(gguf, digest)
        state.drop_blob(digest)
        return place

    monkeypatch.setattr(state, "keep_blob", keep_and_drop)
    known = KnownFiles(tmp_path / "known.json", stamp_of(tiny_model))
    intake = Intake(state, known, make_check(tiny_model), CopyConverter(tiny_adapters), 0)
    checked = await intake.keep(AdapterFiles(upload, (upload,)))
    assert checked.path == state.blob(digest)
    assert checked.path.exists()
