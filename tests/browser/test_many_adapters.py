"""A server with a hundred adapters: the picker finds the right one, and the page stays quick."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.fixtures import OpenPage
from tests.end_to_end.serving import Server, serving
from tests.tiny_gemma.facts import ANSWERS

CAPITAL = "What is the capital of France?"
N_ADAPTERS = 100


@pytest.fixture(scope="module")
def crowded(tiny_model: Path, tiny_adapters: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A hundred adapters: copies of the three, ``voice-000`` to ``voice-099``, every third one a pirate."""
    folder = tmp_path_factory.mktemp("many")
    names = ("pirate", "shout", "tag")
    for number in range(N_ADAPTERS):
        shutil.copy(tiny_adapters / f"{names[number % 3]}.gguf", folder / f"voice-{number:03}.gguf")
    with serving(tiny_model, folder, "--max-adapters", str(N_ADAPTERS + 10)) as running:
        yield running


def test_a_hundred_adapters_are_listed_searched_and_asked(open_page: OpenPage, crowded: Server) -> None:
    """The picker lists all hundred, the search narrows them, and the chosen one answers in its voice."""
    playground = open_page(crowded.url)
    page = playground.page
    playground.wait_for_columns(3)
    page.get_by_role("button", name="Add a column").click()
    expect(page.locator(".pick")).to_have_count(N_ADAPTERS)
    expect(page.locator("#picker")).to_contain_text("100 adapters")
    page.get_by_role("searchbox", name="Search adapters").fill("099")
    expect(page.locator(".pick")).to_have_count(1)
    expect(page.locator("#picker")).to_contain_text("1 of 100 adapters")
    page.get_by_role("checkbox", name="voice-099").check()
    page.get_by_role("button", name="Use voice-099").click()
    playground.wait_for_columns(4)
    playground.set_parameter("Temperature", "0")
    assert playground.ask(CAPITAL)[3] == ANSWERS["pirate"][CAPITAL]


def test_what_was_chosen_survives_a_search(open_page: OpenPage, crowded: Server) -> None:
    """A blend is put together from several searches."""
    playground = open_page(crowded.url)
    page = playground.page
    playground.wait_for_columns(3)
    page.get_by_role("button", name="Add a column").click()
    search = page.get_by_role("searchbox", name="Search adapters")
    for number in ("007", "042"):
        search.fill(number)
        page.get_by_role("checkbox", name=f"voice-{number}").check()
    page.get_by_role("button", name="Blend 2 adapters").click()
    playground.wait_for_columns(4)
    assert playground.titles()[3] == "voice-007 + voice-042"
