"""The pictures of the README, of the real page: four columns streaming (desktop, dark, phone), an engine that died.

``GEMLANE_PICTURES=.github/images scripts/test --browser -k pictures`` takes them anew; otherwise they are thrown away.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.browser.fixtures import OpenPage
from tests.browser.playground import Playground
from tests.browser.slow import slowed
from tests.end_to_end.serving import Server, serving
from tests.tiny_gemma.facts import ANSWERS

OWL = "What does the owl do?"
CAPITAL = "What is the capital of Iceland?"
MAX_BYTES = 200_000
DESKTOP = {"width": 1280, "height": 600}
KINDS: dict[str, dict[str, Any]] = {
    "desktop": {"viewport": DESKTOP, "color_scheme": "light"},
    "dark": {"viewport": DESKTOP, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 700}, "color_scheme": "light", "device_scale_factor": 2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the pictures go."""
    return Path(os.environ.get("GEMLANE_PICTURES") or tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def breakable(tiny_model: Path, tiny_adapters: Path) -> Iterator[Server]:
    """A server of this module, whose engine is slowed down and killed."""
    with serving(tiny_model, tiny_adapters) as running:
        yield running


def take(playground: Playground, path: Path) -> None:
    """Save what the window shows, small enough for a README."""
    playground.page.mouse.move(0, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    playground.page.screenshot(path=path)
    assert path.stat().st_size < MAX_BYTES


def open_with_a_blend(open_page: OpenPage, server: Server, kind: str) -> Playground:
    """The base, two adapters and a blend of two, warmed by a question; the tiny Gemma knows no second turn."""
    playground = open_page(server.url, **KINDS[kind])
    playground.wait_for_columns(3)
    playground.set_parameter("Temperature", "0")
    if kind != "phone":
        playground.page.get_by_role("button", name="Parameters", exact=True).click()
    playground.add_column("shout", "tag")
    answers = playground.ask(OWL)
    assert answers[:3] == [ANSWERS[voice][OWL] for voice in ("base", "pirate", "shout")]
    assert answers[3] == "THE OWL HOOTS. [checked]"
    playground.page.get_by_role("button", name="New").click()
    return playground


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_of_four_columns_streaming(open_page: OpenPage, breakable: Server, folder: Path, kind: str) -> None:
    """All four columns stream when the picture is taken; it is small enough for a README."""
    playground = open_with_a_blend(open_page, breakable, kind)
    with slowed(breakable, rest_s=0.15):
        playground.send(CAPITAL)
        playground.page.get_by_text("Arr, the").wait_for()
        playground.expect_streaming(4)
        take(playground, folder / f"playground-{kind}.png")
    playground.wait_until_done()


def test_pictures_of_an_engine_that_died(open_page: OpenPage, breakable: Server, folder: Path) -> None:
    """The answers keep their text and offer to be asked again when the picture is taken."""
    playground = open_with_a_blend(open_page, breakable, "desktop")
    with slowed(breakable, rest_s=0.15):
        playground.send(CAPITAL)
        playground.page.get_by_text("Arr, the").wait_for()
        playground.expect_streaming(4)
        for pid in breakable.engine_pids():
            os.kill(pid, signal.SIGKILL)
        expect(playground.page.locator('.answer[data-status="failed"]')).to_have_count(4)
    expect(playground.page.locator("dialog[open]")).to_have_count(0)
    take(playground, folder / "playground-engine-died.png")
    expect(playground.page.get_by_role("button", name="Try again")).to_have_count(4)
