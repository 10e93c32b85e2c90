"""Adapters that are dropped onto the page or chosen: progress, a column of their own, refusals with their reason."""

from __future__ import annotations

import json
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.fixtures import OpenPage
from tests.browser.playground import Playground
from tests.end_to_end.serving import Server, serving
from tests.tiny_gemma.facts import ANSWERS
from tests.tiny_gemma.files import ADAPTERS

CAPITAL = "What is the capital of France?"
ADMIN_TOKEN = "may-change"  # noqa: S105 - of this test's own server
USER_TOKEN = "may-ask"  # noqa: S105


@pytest.fixture
def bare(tiny_model: Path, tmp_path: Path) -> Iterator[Server]:
    """A server without any adapter, which takes uploads."""
    (tmp_path / "adapters").mkdir()
    with serving(tiny_model, tmp_path / "adapters", "--state-dir", str(tmp_path / "state")) as running:
        yield running


def drop(playground: Playground, *paths: Path) -> None:
    """Drop files or folders from the desktop onto the middle of the page, as the browser itself hears of it."""
    session = playground.page.context.new_cdp_session(playground.page)
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, "x": 500, "y": 300, "data": data})
    session.detach()


def choose(playground: Playground, button: str, files: Path | list[Path]) -> None:
    """Choose files or a folder through the buttons of the server's dialog."""
    page = playground.page
    page.locator("#status").click()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name=button).click()
    chooser.value.set_files(files)


def adapters_of(server: Server) -> dict[str, str]:
    """The server's adapters and their states."""
    with urllib.request.urlopen(server.url + "/adapters", timeout=10) as response:  # noqa: S310 - http, and ours
        return {adapter["name"]: adapter["state"] for adapter in json.load(response)["adapters"]}


def test_a_dropped_training_folder_becomes_a_column(open_page: OpenPage, bare: Server) -> None:
    """A PEFT folder is sent, converted and served, and its column answers in its voice."""
    playground = open_page(bare.url)
    playground.wait_for_columns(1)
    expect(playground.page.get_by_role("button", name="Server: base")).to_be_visible()
    drop(playground, ADAPTERS["pirate"])
    playground.wait_for_columns(2)
    expect(playground.page.locator(".upload")).to_contain_text("pirate is ready")
    assert playground.titles() == ["Base model", "pirate"]
    assert adapters_of(bare) == {"pirate": "ready"}
    playground.set_parameter("Temperature", "0")
    assert playground.ask(CAPITAL) == [ANSWERS["base"][CAPITAL], ANSWERS["pirate"][CAPITAL]]


def test_dropped_gguf_files_become_columns(open_page: OpenPage, bare: Server, tiny_adapters: Path) -> None:
    """Two GGUF files dropped together become two columns."""
    playground = open_page(bare.url)
    playground.wait_for_columns(1)
    drop(playground, tiny_adapters / "shout.gguf", tiny_adapters / "tag.gguf")
    playground.wait_for_columns(3)
    assert sorted(playground.titles()) == ["Base model", "shout", "tag"]


def test_files_and_folders_can_be_chosen_too(open_page: OpenPage, bare: Server, tiny_adapters: Path) -> None:
    """What can be dropped can be chosen through the server's dialog, without a mouse."""
    playground = open_page(bare.url)
    playground.wait_for_columns(1)
    choose(playground, "Upload an adapter file", tiny_adapters / "tag.gguf")
    playground.wait_for_columns(2)
    choose(playground, "Upload a folder", ADAPTERS["shout"])
    playground.wait_for_columns(3)
    assert playground.titles() == ["Base model", "tag", "shout"]


def test_a_name_that_is_taken_is_asked_about(open_page: OpenPage, bare: Server, tiny_adapters: Path) -> None:
    """A second adapter of one name replaces nothing before the reader says so, and can be added under another."""
    playground = open_page(bare.url)
    playground.may_log("412")
    page = playground.page
    playground.wait_for_columns(1)
    drop(playground, tiny_adapters / "tag.gguf")
    playground.wait_for_columns(2)
    drop(playground, tiny_adapters / "tag.gguf")
    expect(page.locator(".upload.asks")).to_contain_text("There is an adapter tag already")
    page.get_by_role("button", name="Add as tag-2").click()
    playground.wait_for_columns(3)
    assert sorted(adapters_of(bare)) == ["tag", "tag-2"]


def test_what_is_no_adapter_is_refused_with_the_reason(open_page: OpenPage, bare: Server, tmp_path: Path) -> None:
    """The page refuses what it can see; what only the server can see comes back with the server's words."""
    playground = open_page(bare.url)
    playground.may_log("422", "400")
    page = playground.page
    playground.wait_for_columns(1)
    (tmp_path / "notes.txt").write_text("no adapter")
    (tmp_path / "model.bin").write_bytes(b"pickle")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(100))
    drop(playground, tmp_path / "notes.txt")
    expect(page.locator(".upload.failed").last).to_contain_text("No adapter was found")
    drop(playground, tmp_path / "model.bin")
    expect(page.locator(".upload.failed").last).to_contain_text("never opened")
    drop(playground, tmp_path / "broken.gguf")
    expect(page.locator(".upload.failed")).to_have_count(3)
    expect(page.locator(".upload.failed").last).to_contain_text("broken: ")
    assert adapters_of(bare) == {}
    assert len(playground.titles()) == 1


def test_half_a_folder_is_named(open_page: OpenPage, bare: Server, tmp_path: Path) -> None:
    """A PEFT folder without its weights says which file is missing."""
    playground = open_page(bare.url)
    playground.wait_for_columns(1)
    (tmp_path / "half").mkdir()
    shutil.copy(ADAPTERS["pirate"] / "adapter_config.json", tmp_path / "half")
    drop(playground, tmp_path / "half")
    expect(playground.page.locator(".upload.failed")).to_contain_text("adapter_model.safetensors")


def test_an_adapter_dropped_while_answers_run_gets_its_column_afterwards(
    open_page: OpenPage, bare: Server, tiny_adapters: Path
) -> None:
    """Columns do not change under a running answer."""
    playground = open_page(bare.url)
    playground.wait_for_columns(1)
    playground.stream_for_long()
    drop(playground, tiny_adapters / "tag.gguf")
    playground.wait_until_done()
    playground.wait_for_columns(2)


def test_an_upload_needs_the_admin_token(
    open_page: OpenPage, tiny_model: Path, tiny_adapters: Path, tmp_path: Path
) -> None:
    """With a user's token an upload is refused with the server's words; with the admin's it is served."""
    for name, token in (("tokens", USER_TOKEN), ("admins", ADMIN_TOKEN)):
        (tmp_path / name).write_text(token + "\n")
    (tmp_path / "adapters").mkdir()
    flags = (
        "--token-file",
        tmp_path / "tokens",
        "--admin-token-file",
        tmp_path / "admins",
        "--state-dir",
        tmp_path / "s",
    )
    with serving(tiny_model, tmp_path / "adapters", *map(str, flags)) as server:
        playground = open_page(server.url)
        playground.may_log("401", "403")
        page = playground.page
        page.locator("#token-field").fill(USER_TOKEN)
        page.get_by_role("button", name="Use this token").click()
        expect(page.get_by_role("button", name="Server: base")).to_be_visible()
        drop(playground, tiny_adapters / "tag.gguf")
        expect(page.locator(".upload.failed")).to_contain_text("token")
        page.locator("#status").click()
        page.locator("#server").get_by_role("button", name="Token").click()
        page.locator("#token-field").fill(ADMIN_TOKEN)
        page.get_by_role("button", name="Use this token").click()
        drop(playground, tiny_adapters / "tag.gguf")
        playground.wait_for_columns(2)
        playground.set_parameter("Temperature", "0")
        assert playground.ask(CAPITAL)[1] == ANSWERS["tag"][CAPITAL]
