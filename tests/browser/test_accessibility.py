"""Axe finds no fault in any state of the page, light, dark or on a phone; the keyboard alone is enough."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from tests.browser.fixtures import OpenPage
from tests.browser.playground import Playground
from tests.browser.slow import at_half_speed, slowed
from tests.end_to_end.serving import Server
from tests.tiny_gemma.facts import ANSWERS

CAPITAL = "What is the capital of France?"
KINDS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone": {"color_scheme": "light", "viewport": {"width": 390, "height": 844}, "has_touch": True},
}


def expect_no_fault(playground: Playground, state: str) -> None:
    """Run every rule of axe-core on the page as it is."""
    results = Axe().run(playground.page)
    faults = [
        (violation["impact"], violation["id"], [node["target"] for node in violation["nodes"]])
        for violation in results.response["violations"]
    ]
    assert not faults, f"{state}: {faults}"


def open_code(playground: Playground) -> None:
    """The dialog of code lines."""
    playground.page.get_by_role("button", name="Code").click()


def open_history(playground: Playground) -> None:
    """The dialog of kept conversations."""
    playground.page.get_by_role("button", name="History").click()


def open_server(playground: Playground) -> None:
    """The dialog of the server's state."""
    playground.page.locator("#status").click()


def open_picker(playground: Playground) -> None:
    """The dialog that chooses adapters."""
    playground.page.get_by_role("button", name="Add a column").click()


def open_token(playground: Playground) -> None:
    """The dialog that asks for a token."""
    open_server(playground)
    playground.page.locator("#server").get_by_role("button", name="Token").click()


DIALOGS: list[Callable[[Playground], None]] = [open_code, open_history, open_server, open_picker, open_token]


@pytest.mark.parametrize("kind", KINDS)
def test_axe_finds_no_fault(open_page: OpenPage, server: Server, kind: str) -> None:
    """No violation of any impact: empty, with parameters, streaming, answered, measured, failed, in every dialog."""
    playground = open_page(server.url, **KINDS[kind])
    page = playground.page
    playground.wait_for_columns(3)
    expect_no_fault(playground, "empty")
    page.get_by_role("button", name="Parameters", exact=True).click()
    page.get_by_label("Top p", exact=True).fill("9")
    page.get_by_label("Top p", exact=True).blur()
    expect(page.get_by_text("Top p must be between 0 and 2")).to_be_visible()
    expect_no_fault(playground, "a parameter out of its range")
    page.get_by_role("button", name="Close the parameters").click()
    with slowed(server):
        playground.stream_for_long("200")
        playground.expect_streaming(3)
        expect_no_fault(playground, "streaming")
        playground.wait_until_done()
    with at_half_speed(server):
        page.get_by_role("button", name="Measure what mixing costs").click()
        page.locator(".cost-table").wait_for(timeout=120_000)
    expect_no_fault(playground, "measured")
    for opening in DIALOGS:
        opening(playground)
        expect_no_fault(playground, opening.__name__)
        page.keyboard.press("Escape")
        if page.locator("dialog[open]").count():
            page.keyboard.press("Escape")
    playground.may_log("400")
    page.get_by_role("button", name="New").click()
    playground.ask("capital " * 700)
    expect(page.locator('.answer[data-status="failed"]')).to_have_count(3)
    expect_no_fault(playground, "failed")


def test_the_keyboard_alone_is_enough(playground: Playground) -> None:
    """Shortcuts and Tab reach a new column, the parameters, an answer, its code and the help; Escape leads back."""
    page = playground.page
    keys = page.keyboard
    keys.press("c")
    expect(page.locator("#picker")).to_be_visible()
    keys.type("tag")
    keys.press("Tab")
    keys.press("Space")
    keys.press("Enter")
    playground.wait_for_columns(4)
    assert playground.titles()[3] == "tag"
    keys.press("p")
    expect(page.locator("#system")).to_be_focused()
    page.locator("#parameter-temperature").focus()
    keys.type("0")
    keys.press("Tab")
    page.locator("#board").focus()
    keys.press("/")
    expect(playground.prompt).to_be_focused()
    keys.type(CAPITAL)
    keys.press("Enter")
    playground.wait_until_done()
    assert playground.answers() == [ANSWERS[voice][CAPITAL] for voice in ("base", "pirate", "shout", "tag")]
    page.locator("#board").focus()
    for key, dialog in (("s", "#code"), ("h", "#history"), ("?", "#help")):
        keys.press(key)
        expect(page.locator(dialog)).to_be_visible()
        keys.press("Escape")
        expect(page.locator(dialog)).to_be_hidden()
        expect(page.locator("#board")).to_be_focused()
    keys.press("n")
    expect(page.locator(".turn")).to_have_count(0)
    expect(playground.prompt).to_be_focused()


def test_single_keys_can_be_switched_off(playground: Playground) -> None:
    """With the switch off a letter does nothing; the page keeps the choice over a reload (WCAG 2.1.4)."""
    page = playground.page
    page.get_by_role("button", name="Keyboard shortcuts").click()
    page.get_by_label("Single keys act").uncheck()
    page.keyboard.press("Escape")
    page.reload()
    playground.wait_for_columns(3)
    page.locator("#board").focus()
    page.keyboard.press("h")
    expect(page.locator("#history")).to_be_hidden()


def test_letters_in_a_field_are_text(playground: Playground) -> None:
    """A shortcut's letter typed into the prompt is a letter."""
    playground.prompt.focus()
    playground.page.keyboard.type("cshn?/p")
    assert playground.prompt.input_value() == "cshn?/p"
    expect(playground.page.locator("dialog[open]")).to_have_count(0)


def test_a_screen_reader_hears_the_ends_and_not_every_token(playground: Playground) -> None:
    """The live region speaks when columns begin and end; the growing text is marked busy and is in no live region."""
    page = playground.page
    playground.set_parameter("Temperature", "0")
    page.evaluate("""
        window.heard = [];
        new MutationObserver(() => heard.push(document.getElementById("live").textContent))
            .observe(document.getElementById("live"), {childList: true, characterData: true, subtree: true});
    """)
    playground.ask(CAPITAL)
    heard = page.evaluate("heard")
    assert heard[0] == "Asking 3 columns"
    assert len(heard) <= 4
    assert any("tokens a second" in sentence for sentence in heard[1:])
    assert page.locator(".answer [aria-live], .turn [role=log]").count() == 0


def test_the_theme_follows_the_system_and_the_switch(open_page: OpenPage, server: Server) -> None:
    """The background is dark where the system is; the button overrides it, and a reload keeps the choice."""
    playground = open_page(server.url, color_scheme="dark")
    page = playground.page
    playground.wait_for_columns(3)
    paper = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(paper)
    page.get_by_role("button", name="Theme: as the system").click()
    light = page.evaluate(paper)
    assert sum(map(int, light[4:-1].split(","))) > 700 > 100 > sum(map(int, dark[4:-1].split(",")))
    page.reload()
    expect(page.get_by_role("button", name="Theme: light")).to_be_visible()
    assert page.evaluate(paper) == light
