"""``kill -9`` at every write of the store leaves the state before or after the change, never half of it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runtime.adapters.known import digest_of
from tests.runtime.adapters.crashing import N_CHANGES, Place

ROOT = Path(__file__).parents[3]


def crash_everywhere(root: Path, model: Path, adapters: Path) -> list[dict[str, int]]:
    """What became of each run; the last one came to its end."""
    command = [sys.executable, "-m", "tests.runtime.adapters.crashing", str(root), str(model), str(adapters)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


async def open_again(root: Path, model: Path, adapters: Path) -> Place:
    """A new server on a folder that an earlier one left."""
    place = Place(root, model, adapters)
    await place.uploads.load()
    await asyncio.gather(*place.uploads._tasks)  # a conversion that was cut off is done again
    return place


async def close(place: Place) -> None:
    """As at the end of a server."""
    await place.uploads.close()
    await place.store.close()
    place.state.close()


async def states(root: Path, model: Path, adapters: Path) -> list[dict[str, Any]]:
    """What can be seen before the first change, and after each, without any crash."""
    place = await open_again(root, model, adapters)
    seen = [place.seen()]
    for number in range(N_CHANGES):
        await place.change(number)
        seen.append(place.seen())
    await close(place)
    return seen


async def test_a_kill_at_every_write(
    tmp_path: Path, tiny_model: Path, tiny_adapters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each kill the content is the old or the new one and equals its digest, and later changes succeed."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)  # as in the processes that are killed
    runs = crash_everywhere(tmp_path, tiny_model, tiny_adapters)
    seen = await states(tmp_path / "whole", tiny_model, tiny_adapters)
    assert len(runs) > 200, "the writes are seen"
    assert {run["signal"] for run in runs[:-1]} == {signal.SIGKILL}
    assert runs[-1] == {"run": len(runs), "n_done": N_CHANGES, "signal": 0}
    for run in runs[:-1]:
        root, n_done = tmp_path / str(run["run"]), run["n_done"]
        for _ in range(2):  # to recover once more changes nothing
            place = await open_again(root, tiny_model, tiny_adapters)
            found = place.seen()
            assert found in seen[n_done : n_done + 2], f"killed at chance {run['run']}, after {n_done} changes"
            check_files(place, found)
            await close(place)
        place = await open_again(root, tiny_model, tiny_adapters)
        n_done = max(number for number in (n_done, n_done + 1) if seen[number : number + 1] == [found])
        for number in range(n_done, N_CHANGES):
            await place.change(number)
        assert place.seen() == seen[-1]
        check_files(place, place.seen())
        await close(place)


def check_files(place: Place, seen: dict[str, Any]) -> None:
    """The folder holds what the adapters need, and nothing more."""
    digests = {digest for _, digest, _ in seen.values() if digest is not None}
    blobs = sorted(path for path in place.state.blobs.iterdir() if path.suffix == ".gguf")
    assert {path.stem for path in blobs} == digests
    assert all(digest_of(path) == path.stem for path in blobs)
    assert list(place.state.incoming.iterdir()) == []
    assert {path.name for path in place.state.uploads.iterdir()} == {record.id for record in place.uploads}
