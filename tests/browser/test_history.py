"""Conversations after the fact: edit, ask again, keep, export, import, remove."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.fixtures import OpenPage
from tests.browser.playground import Playground
from tests.end_to_end.serving import Server
from tests.tiny_gemma.facts import ANSWERS

CAPITAL = "What is the capital of France?"
OWL = "What does the owl do?"


def greedy(playground: Playground) -> Playground:
    """The page with temperature 0, where answers are exact."""
    playground.set_parameter("Temperature", "0")
    return playground


def test_an_edited_prompt_is_asked_in_place_of_the_old_one(playground: Playground) -> None:
    """Editing replaces the turn; the conversation as it was stays in the history."""
    greedy(playground).ask(CAPITAL)
    playground.page.get_by_role("button", name="Edit this prompt").click()
    assert playground.prompt.input_value() == CAPITAL
    expect(playground.page.locator("#editing")).to_be_visible()
    assert playground.ask(OWL)[0] == ANSWERS["base"][OWL]
    expect(playground.page.locator(".turn")).to_have_count(1)
    playground.page.get_by_role("button", name="History").click()
    expect(playground.page.locator(".kept li")).to_have_count(2)


def test_one_column_is_asked_again_alone(playground: Playground) -> None:
    """Asking a column again sends one request and leaves the other answers as they are."""
    greedy(playground).ask(CAPITAL)
    asked: list[str] = []
    playground.page.on("request", lambda request: asked.append(request.url) if request.method == "POST" else None)
    playground.page.get_by_role("button", name="Ask pirate again").click()
    playground.wait_until_done()
    assert len(asked) == 1
    assert playground.answers() == [ANSWERS[voice][CAPITAL] for voice in ("base", "pirate", "shout")]


def test_the_focus_comes_back_to_the_button_that_asked(playground: Playground) -> None:
    """A button that goes away while its answer runs has the focus again afterwards, for readers without a mouse."""
    greedy(playground).ask(CAPITAL)
    again = playground.page.get_by_role("button", name="Ask pirate again")
    again.focus()
    playground.page.keyboard.press("Enter")
    playground.wait_until_done()
    expect(again).to_be_focused()


def test_a_long_conversation_stays_quick(playground: Playground, tmp_path: Path) -> None:
    """With a hundred turns of four columns a prompt is asked, and its refusal shown, within five seconds."""
    columns = [{"id": str(number), "members": []} for number in range(4)]
    answer = {"status": "done", "text": "- one **bold** claim\n" * 8, "members": [], "nTokens": 5}
    turns = [
        {"prompt": f"prompt {turn}", "answers": {str(number): answer for number in range(4)}} for turn in range(100)
    ]
    conversation = {"mode": "chat", "title": "long", "columns": columns, "turns": turns}
    kept = tmp_path / "long.json"
    kept.write_text(json.dumps({"format": "gemlane-conversations", "version": 1, "conversations": [conversation]}))
    page = playground.page
    page.get_by_role("button", name="History").click()
    page.locator("#import-file").set_input_files(kept)
    page.locator(".kept-open").first.click()
    expect(page.locator(".turn")).to_have_count(100)
    playground.may_log("400")
    started = time.monotonic()
    playground.send(CAPITAL)
    page.locator('.answer[data-status="failed"]').nth(3).wait_for()  # past the tiny Gemma's context
    assert time.monotonic() - started < 5
    page.get_by_role("button", name="Remove the column Base model").first.click()
    expect(playground.heads).to_have_count(3)


def test_a_column_added_later_can_answer_earlier_prompts(playground: Playground) -> None:
    """A new column shows that it was not asked, and a button that asks it."""
    greedy(playground).ask(CAPITAL)
    playground.add_column("tag")
    assert playground.answers()[3] == "Not asked yet"
    playground.page.get_by_role("button", name="Ask this column").click()
    playground.wait_until_done()
    assert playground.answers()[3] == ANSWERS["tag"][CAPITAL]


def test_a_conversation_survives_a_reload(playground: Playground) -> None:
    """The open conversation, its answers and its parameters are there again after a reload."""
    answers = greedy(playground).ask(CAPITAL)
    expect(playground.page.locator(".cost")).to_be_visible()
    playground.page.reload()
    expect(playground.page.locator(".turn")).to_have_count(1)
    assert playground.answers() == answers
    expect(playground.page.locator("#summary")).to_contain_text("temperature 0")


def test_export_and_import_carry_a_conversation_to_another_browser(
    playground: Playground, open_page: OpenPage, server: Server, tmp_path: Path
) -> None:
    """The exported JSON, imported into a browser that has nothing, shows the same prompts and answers."""
    answers = greedy(playground).ask(CAPITAL)
    playground.page.get_by_role("button", name="History").click()
    with playground.page.expect_download() as download:
        playground.page.get_by_role("button", name="Export all").click()
    exported = tmp_path / "conversations.json"
    download.value.save_as(exported)
    assert json.loads(exported.read_text())["conversations"][0]["turns"][0]["prompt"] == CAPITAL

    other = open_page(server.url)
    other.wait_for_columns(3)
    other.page.get_by_role("button", name="History").click()
    other.page.locator("#import-file").set_input_files(exported)
    other.page.locator(".kept-open").first.click()
    expect(other.page.locator(".turn")).to_have_count(1)
    assert other.answers() == answers
    assert other.ask(OWL)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("not json", "is not JSON"),
        ("[]", "holds no exported conversations"),
        ('{"format": "gemlane-conversations", "version": 9, "conversations": []}', "version 9"),
        ('{"format": "gemlane-conversations", "version": 1, "conversations": [null]}', "not an object"),
        ('{"format": "gemlane-conversations", "version": 1, "conversations": [{"mode": "chat"}]}', "1 to 8 columns"),
        (
            '{"format": "gemlane-conversations", "version": 1, "conversations": [{"mode": "chat", "turns": [{}],'
            ' "columns": [{"id": "a", "members": [{"name": "x", "scale": "NaN"}]}]}]}',
            "a member needs a name and a scale",
        ),
        (
            '{"format": "gemlane-conversations", "version": 1, "conversations": [{"mode": "chat", "turns": [{}],'
            ' "columns": [{"id": "a", "members": []}]}]}',
            "a turn needs a prompt and answers",
        ),
    ],
)
def test_a_wrong_file_is_refused_with_its_fault(
    playground: Playground, tmp_path: Path, content: str, words: str
) -> None:
    """A file that is not an export changes nothing, and the page says what is wrong with it."""
    wrong = tmp_path / "wrong.json"
    wrong.write_text(content)
    playground.page.get_by_role("button", name="History").click()
    playground.page.locator("#import-file").set_input_files(wrong)
    expect(playground.page.locator("#history")).to_contain_text(words)
    expect(playground.page.locator(".kept li")).to_have_count(0)


def test_a_removed_conversation_is_gone(playground: Playground) -> None:
    """The cross in the history removes a conversation from the browser for good."""
    greedy(playground).ask(CAPITAL)
    playground.page.get_by_role("button", name="History").click()
    playground.page.get_by_role("button", name=f"Remove {CAPITAL}").click()
    expect(playground.page.locator(".kept li")).to_have_count(0)
    playground.page.keyboard.press("Escape")
    playground.page.reload()
    playground.wait_for_columns(3)
    expect(playground.page.locator(".turn")).to_have_count(0)
