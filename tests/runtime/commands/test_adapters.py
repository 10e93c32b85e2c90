"""``gemlane adapters`` against a running server with the tiny Gemma's adapters; the engine is a double."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from runtime.adapters.check import make_check
from runtime.adapters.converter import Converter
from runtime.adapters.disk import StateDir
from runtime.adapters.intake import Intake
from runtime.adapters.known import KnownFiles, stamp_of
from runtime.adapters.service import AdapterService
from runtime.adapters.store import Store
from runtime.adapters.uploads import Uploads
from runtime.cli import main
from runtime.commands.adapters import table
from tests.runtime.conftest import Serve
from tests.tiny_gemma.files import ADAPTERS

Gemlane = Callable[..., Awaitable[int]]


@pytest.fixture
async def gemlane(serve: Serve, store: Store, tmp_path: Path, tiny_model: Path) -> AsyncIterator[Gemlane]:
    """Runs ``gemlane adapters`` with these words; the exit status."""
    state = StateDir(tmp_path / "state")
    known = KnownFiles(state.root / "known.json", stamp_of(tiny_model))
    uploads = Uploads(state, store, Intake(state, known, make_check(tiny_model), Converter(tiny_model, 32), 0))
    (tmp_path / "admins").write_text("secret\n")
    client = await serve(AdapterService(store, uploads), admin_token_file=str(tmp_path / "admins"))
    url = str(client._base_url)

    async def run(*words: str, token: bool = True) -> int:
        tokens = ["--token-file", str(tmp_path / "admins")] if token else []
        return await asyncio.to_thread(main, ["adapters", words[0], "--url", url, *tokens, *words[1:]])

    yield run
    await uploads.close()
    state.close()


async def test_a_life_by_commands(
    gemlane: Gemlane, capsys: pytest.CaptureFixture[str], tiny_adapters: Path, store: Store
) -> None:
    """A folder is added, replaced by a file if its digest is named, pinned, listed, and removed."""
    assert await gemlane("add", str(ADAPTERS["tag"])) == 0
    assert "state          ready" in capsys.readouterr().out
    assert await gemlane("add", str(tiny_adapters / "tag.gguf")) == 2
    assert "there is an adapter 'tag' already" in capsys.readouterr().err
    digest = store.resolve("tag").members[0].digest
    assert await gemlane("add", str(tiny_adapters / "shout.gguf"), "--name", "tag", "--if-match", "0" * 64) == 2
    assert await gemlane("add", str(tiny_adapters / "shout.gguf"), "--name", "tag", "--if-match", digest) == 0
    assert store.resolve("tag").members[0].digest != digest
    assert await gemlane("pin", "tag") == 0
    capsys.readouterr()
    assert await gemlane("list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["NAME", "STATE", "RANK", "SIZE", "USES", "LAST", "USED", "DIGEST"]
    assert [line.split()[0] for line in lines[1:]] == ["pirate", "tag"]
    assert "ready, pinned" in lines[2]
    assert await gemlane("unpin", "tag") == 0
    assert await gemlane("remove", "tag") == 0
    assert await gemlane("show", "tag") == 2
    assert "no adapter 'tag'" in capsys.readouterr().err


async def test_json_is_what_the_server_answers(gemlane: Gemlane, capsys: pytest.CaptureFixture[str]) -> None:
    """``--json`` prints what the server answers, for scripts."""
    assert await gemlane("show", "pirate", "--json") == 0
    assert json.loads(capsys.readouterr().out)["digest"] == "a" * 64


async def test_what_goes_wrong_says_what_to_do(
    gemlane: Gemlane, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A missing file, a folder without an adapter, a missing token, and a server that is not there."""
    for words, text in (
        (("add", str(tmp_path / "none")), "there is no"),
        (("add", str(tmp_path)), "adapter_config.json is needed"),
        (("rescan",), "--adapters DIR"),
    ):
        assert await gemlane(*words) == 2
        assert text in capsys.readouterr().err
    assert await gemlane("remove", "pirate", token=False) == 2
    assert "--token-file or GEMLANE_TOKEN" in capsys.readouterr().err
    assert await asyncio.to_thread(main, ["adapters", "list", "--url", "http://127.0.0.1:9"]) == 2
    assert "start one with gemlane serve" in capsys.readouterr().err


async def test_an_upload_that_is_refused_early(
    gemlane: Gemlane, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The server's reason is printed, although it does not read the whole file."""
    big = tmp_path / "big.gguf"
    with big.open("wb") as file:
        file.truncate(400 << 20)
    assert await gemlane("add", str(big)) == 2
    assert "314572800 bytes at most" in capsys.readouterr().err


def test_the_table_shows_what_is_wrong_below_its_line() -> None:
    """A refusal's reason, and the state of a new content that is not served yet."""
    adapter = {
        "name": "é", "state": "refused", "reason": "rank 0", "digest": None, "bytes": 0, "rank": 0, "hits": 0,
        "last_used_at": None, "pinned": False, "in_lane": False, "replacement": None,
    }  # fmt: skip
    newer = {"state": "refused", "reason": "cut", "digest": None}
    replaced = adapter | {"name": "b", "state": "ready", "reason": None, "replacement": newer}
    lines = table([adapter, replaced])
    assert [line.strip() for line in (lines[2], lines[4])] == ["rank 0", "its new content is refused: cut"]
    assert table([]) == ["no adapters"]
