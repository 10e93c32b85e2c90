"""What goes wrong: the engine dies, the server goes, a token is missing. Each has words and a way on."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.fixtures import OpenPage
from tests.browser.playground import Playground
from tests.browser.slow import slowed
from tests.end_to_end.serving import Server, serving
from tests.tiny_gemma.facts import ANSWERS

CAPITAL = "What is the capital of France?"
TOKEN = "correct-horse-battery-staple"  # noqa: S105 - of this test's own server


def test_the_engine_killed_in_mid_stream(open_page: OpenPage, tiny_model: Path, tiny_adapters: Path) -> None:
    """Every column keeps its text, says what happened and offers to ask again; then all answer under a new engine."""
    with serving(tiny_model, tiny_adapters) as server:
        playground = open_page(server.url)
        playground.wait_for_columns(3)
        with slowed(server):
            playground.stream_for_long()
            playground.expect_streaming(3)
            for pid in server.engine_pids():
                os.kill(pid, signal.SIGKILL)
        failed = playground.page.locator('.answer[data-status="failed"]')
        expect(failed).to_have_count(3)
        assert all(answer.startswith("pig pig") for answer in playground.answers())
        for fault in failed.locator(".answer-fault").all():
            expect(fault).to_contain_text("the engine process")
            expect(fault).to_contain_text("ask again")
        expect(playground.page.get_by_role("button", name=re.compile("^Server: tiny|^Server: base"))).to_be_visible()
        failed.first.get_by_role("button", name="Try again").click()
        playground.wait_until_done()
        expect(failed).to_have_count(2)
        expect(playground.page.locator('.answer[data-status="done"]')).to_have_count(1)


def test_the_server_goes_and_comes_back(
    open_page: OpenPage, tiny_model: Path, tiny_adapters: Path, unused_port: int
) -> None:
    """The page says that the server does not answer, and finds it again by itself."""
    with serving(tiny_model, tiny_adapters, "--port", str(unused_port)) as server:
        playground = open_page(server.url)
        playground.may_log("ERR_CONNECTION_REFUSED", "ERR_EMPTY_RESPONSE", "503")
        playground.wait_for_columns(3)
        server.stop()
        playground.send(CAPITAL)
        fault = playground.page.locator(".answer-fault").first
        expect(fault).to_contain_text("The server does not answer")
        expect(fault).to_contain_text("Is the server running")
        expect(playground.page.get_by_role("button", name="Server: no connection")).to_be_visible()
    with serving(tiny_model, tiny_adapters, "--port", str(unused_port)):
        expect(playground.page.get_by_role("button", name=re.compile("mixed in one batch"))).to_be_visible(
            timeout=15_000
        )
        expect(playground.page.locator("#banner")).to_be_hidden()
        playground.set_parameter("Temperature", "0")
        assert playground.ask(CAPITAL)[0] == ANSWERS["base"][CAPITAL]


@pytest.fixture(scope="module")
def guarded(tiny_model: Path, tiny_adapters: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that wants a token."""
    tokens = tmp_path_factory.mktemp("tokens") / "tokens"
    tokens.write_text(TOKEN + "\n")
    with serving(tiny_model, tiny_adapters, "--token-file", str(tokens)) as running:
        yield running


def test_a_token_is_asked_for_and_stays_in_the_tab(open_page: OpenPage, guarded: Server) -> None:
    """A wrong token is refused with words, the right one opens the page; it is in sessionStorage and nowhere else."""
    playground = open_page(guarded.url)
    playground.may_log("401")
    page = playground.page
    field = page.locator("#token-field")
    expect(field).to_have_attribute("type", "password")
    field.fill("a-wrong-one")
    page.get_by_role("button", name="Use this token").click()
    expect(page.locator("#token")).to_contain_text("does not accept this token")
    field.fill(TOKEN)
    page.get_by_role("button", name="Use this token").click()
    playground.wait_for_columns(3)
    playground.set_parameter("Temperature", "0")
    assert playground.ask(CAPITAL) == [ANSWERS[voice][CAPITAL] for voice in ("base", "pirate", "shout")]
    kept = page.evaluate("({session: JSON.stringify(sessionStorage), local: JSON.stringify(localStorage)})")
    assert TOKEN in kept["session"]
    assert TOKEN not in kept["local"]
    page.get_by_role("button", name="Code").click()
    expect(page.locator("#code pre")).to_contain_text("Bearer $GEMLANE_TOKEN")
    assert TOKEN not in page.locator("#code").inner_text()
    page.keyboard.press("Escape")
    page.reload()
    playground.wait_for_columns(3)


def test_without_a_token_the_page_says_where_to_enter_one(open_page: OpenPage, guarded: Server) -> None:
    """A reader who closes the token dialog finds a sentence that says where to enter one, and opens it again."""
    playground = open_page(guarded.url)
    playground.may_log("401")
    page = playground.page
    expect(page.locator("#token-field")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#banner")).to_contain_text("wants a token")
    page.get_by_role("button", name="Server: token needed").click()
    page.locator("#server").get_by_role("button", name="Token").click()
    expect(page.locator("#token-field")).to_be_visible()


def test_an_adapter_that_is_gone(playground: Playground) -> None:
    """A column whose adapter the server lost fails alone, and names what to do."""
    page = playground.page
    playground.set_parameter("Temperature", "0")
    page.route(
        "**/v1/chat/completions",
        lambda route: route.continue_(post_data=route.request.post_data.replace('"lora":"shout"', '"lora":"lost"')),
    )
    playground.may_log("404")
    answers = playground.ask(CAPITAL)
    assert answers[:2] == [ANSWERS["base"][CAPITAL], ANSWERS["pirate"][CAPITAL]]
    fault = page.locator(".answer-fault").nth(2)
    expect(fault).to_contain_text("lost")
    expect(fault).to_contain_text("choose another")


def test_a_prompt_that_is_too_long(playground: Playground) -> None:
    """The server's own words reach the reader, with the way out."""
    playground.may_log("400")
    playground.send("capital " * 700)
    fault = playground.page.locator(".answer-fault").first
    expect(fault).to_contain_text("context")
    expect(fault).to_contain_text("Shorten the prompt")
