"""One prompt, all columns: each answers under its own adapter, at the same time, with its figures."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from pathlib import Path

from playwright.sync_api import expect

from tests.browser.fixtures import OpenPage
from tests.browser.playground import Playground
from tests.browser.slow import at_half_speed, slowed
from tests.end_to_end.serving import Server, serving
from tests.tiny_gemma.facts import ANSWERS

CAPITAL = "What is the capital of France?"
OWL = "What does the owl do?"


def n_in_flight(server: Server) -> int:
    """Requests that the server works on, as it says itself."""
    with urllib.request.urlopen(server.url + "/health", timeout=10) as response:  # noqa: S310 - http, and ours
        return int(json.load(response)["requests"]["in_flight"])


def test_a_first_visit_shows_the_base_beside_the_first_adapters(playground: Playground) -> None:
    """The columns of a first visit are the base model and the first two adapters by name."""
    assert playground.titles() == ["Base model", "pirate", "shout"]
    expect(playground.page.get_by_role("button", name=re.compile(r"^Server: .*mixed in one batch"))).to_be_visible(
        timeout=15_000
    )


def test_every_column_answers_in_its_own_voice(playground: Playground) -> None:
    """Four columns give the exact answers of the base and the three adapters, in one conversation after another."""
    playground.set_parameter("Temperature", "0")
    playground.add_column("tag")
    for question in (OWL, CAPITAL):
        playground.page.get_by_role("button", name="New").click()
        assert playground.ask(question) == [ANSWERS[voice][question] for voice in ("base", "pirate", "shout", "tag")]
    feet = playground.page.locator(".turn").locator(".answer-foot").all_inner_texts()
    for foot in feet:
        assert re.search(r"\d tok/s", foot)
        assert re.search(r"\d m?s to first token", foot)
        assert re.search(r"\d+ tokens", foot)


def test_an_example_starts_a_conversation(playground: Playground) -> None:
    """A click on an example of the empty page asks it."""
    playground.set_parameter("Temperature", "0")
    playground.page.get_by_role("button", name=CAPITAL).click()
    playground.wait_until_done()
    assert playground.answers()[0] == ANSWERS["base"][CAPITAL]


def test_eight_columns_run_at_the_same_time(playground: Playground, server: Server) -> None:
    """With eight columns all eight show text before any of them ends, and the server has all eight in flight.

    A browser opens six connections to a host; the page must get all of its streams past that.
    """
    for adapter in ("tag", "pirate", "shout", "tag"):
        playground.add_column(adapter)
    playground.add_column()
    expect(playground.page.get_by_role("button", name="Add a column")).to_be_disabled()
    with slowed(server):
        playground.stream_for_long()
        playground.expect_streaming(8)
        assert n_in_flight(server) == 8
        playground.page.keyboard.press("Escape")
    playground.wait_until_done()
    expect(playground.page.locator('.answer[data-status="stopped"]')).to_have_count(8)


def test_stop_keeps_what_has_come_and_frees_the_server(playground: Playground, server: Server) -> None:
    """Stopped answers keep their text and say so; the server runs nothing any more."""
    with slowed(server):
        playground.stream_for_long()
        playground.expect_streaming(3)
        playground.page.get_by_role("button", name="Stop").click()
    playground.wait_until_done()
    assert all("pig pig" in answer for answer in playground.answers())
    expect(playground.page.locator(".answer-foot").first).to_contain_text("stopped")
    deadline = time.monotonic() + 10
    while n_in_flight(server):
        assert time.monotonic() < deadline


def test_scales_reach_the_model(playground: Playground) -> None:
    """An adapter at scale 0 answers as the base does, at scale 1 as itself; slider and number show the same."""
    page = playground.page
    playground.set_parameter("Temperature", "0")
    number = page.get_by_role("spinbutton", name="Scale of pirate, as a number")
    number.fill("0")
    assert playground.titles()[1] == "pirate \u00d70"
    assert page.get_by_role("slider", name="Scale of pirate").input_value() == "0"
    assert playground.ask(CAPITAL)[1] == ANSWERS["base"][CAPITAL]
    page.get_by_role("slider", name="Scale of pirate").fill("1")
    assert number.input_value() == "1"
    page.get_by_role("button", name="Ask every column again").click()
    playground.wait_until_done()
    assert playground.answers()[1] == ANSWERS["pirate"][CAPITAL]


def test_a_blend_is_asked_for_by_its_members(playground: Playground) -> None:
    """A column of two adapters sends both names with their scales, and the server answers."""
    page = playground.page
    playground.set_parameter("Temperature", "0")
    playground.add_column("pirate", "shout")
    page.get_by_role("spinbutton", name="Scale of pirate, as a number").last.fill("0.5")
    with page.expect_request(lambda request: "pirate:0.5" in (request.post_data or "")) as asked:
        playground.ask(OWL)
    assert asked.value.post_data_json["lora"] == "pirate:0.5+shout"
    assert playground.answers()[3]
    expect(page.locator(".answer-fault:not(:empty)")).to_have_count(0)


def test_a_column_changes_its_adapter_and_leaves(playground: Playground) -> None:
    """The head's button chooses other adapters, the cross removes the column; the last one stays."""
    page = playground.page
    page.get_by_role("button", name="pirate, choose adapters").click()
    page.get_by_role("checkbox", name="pirate").uncheck()
    page.get_by_role("checkbox", name="tag").check()
    page.get_by_role("button", name="Use tag").click()
    assert playground.titles() == ["Base model", "tag", "shout"]
    page.get_by_role("button", name="Remove the column Base model").click()
    page.get_by_role("button", name="Remove the column tag").click()
    assert playground.titles() == ["shout"]
    expect(page.get_by_role("button", name="Remove the column shout")).to_be_disabled()


def test_mixing_is_measured_on_demand(playground: Playground, server: Server) -> None:
    """The row below the answers measures the columns mixed, as many base columns, and each one alone."""
    page = playground.page
    playground.stream_for_long()
    playground.wait_until_done()
    expect(page.locator(".cost-line")).to_contain_text("3 columns")
    with at_half_speed(server):
        page.get_by_role("button", name="Measure what mixing costs").click()
        expect(page.get_by_role("row", name=re.compile("mixed in one batch"))).to_contain_text("tok/s", timeout=120_000)
    expect(page.get_by_role("row", name=re.compile("columns of the base model"))).to_contain_text("mixing costs")
    expect(page.get_by_role("row", name=re.compile("one after another"))).to_contain_text("one batch is")
    for foot in page.locator(".answer-foot").all():
        expect(foot).to_contain_text("tok/s alone")


def test_a_server_that_groups_is_not_said_to_mix(open_page: OpenPage, tiny_model: Path, tiny_adapters: Path) -> None:
    """Where adapters take turns, the state and the measured row say so; the answers are the same."""
    with serving(tiny_model, tiny_adapters, "--adapter-batching", "grouped") as server:
        playground = open_page(server.url)
        page = playground.page
        playground.wait_for_columns(3)
        expect(page.get_by_role("button", name=re.compile(r"^Server: .*adapters take turns"))).to_be_visible()
        playground.set_parameter("Temperature", "0")
        assert playground.ask(CAPITAL) == [ANSWERS[voice][CAPITAL] for voice in ("base", "pirate", "shout")]
        page.get_by_role("button", name="New").click()
        playground.stream_for_long()
        playground.wait_until_done()
        with at_half_speed(server):
            page.get_by_role("button", name="Measure what mixing costs").click()
            row = page.get_by_role("row", name=re.compile("These columns"))
            expect(row).to_contain_text("adapters in turns", timeout=120_000)


def test_an_answer_too_short_to_measure_says_so(playground: Playground) -> None:
    """Nine tokens make no figure; the page says why instead of showing one."""
    playground.set_parameter("Temperature", "0")
    playground.ask(CAPITAL)
    playground.page.get_by_role("button", name="Measure what mixing costs").click()
    expect(playground.page.locator(".cost-fault")).to_contain_text("too short to measure")
    assert playground.answers()[0] == ANSWERS["base"][CAPITAL]


def test_answers_come_whole_where_streaming_is_off(playground: Playground) -> None:
    """Without streams the answers are the same, and show no time to a first token, since none was seen."""
    playground.set_parameter("Temperature", "0")
    playground.page.get_by_label("Stream the answers").uncheck()
    assert playground.ask(CAPITAL) == [ANSWERS[voice][CAPITAL] for voice in ("base", "pirate", "shout")]
    expect(playground.page.locator(".answer-foot").first).not_to_contain_text("first token")


def test_a_phone_swipes_through_the_columns(open_page: OpenPage, server: Server) -> None:
    """A column takes most of a narrow screen, the next one shows its edge, and the page itself does not scroll."""
    phone = open_page(server.url, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    phone.wait_for_columns(3)
    boxes = [box for head in phone.heads.all() if (box := head.bounding_box()) is not None]
    assert len(boxes) == 3
    assert 280 < boxes[0]["width"] < 390
    assert boxes[1]["x"] < 390
    assert phone.page.evaluate("document.documentElement.scrollWidth") == 390
    phone.prompt.fill("first line")
    phone.prompt.press("Enter")
    assert phone.prompt.input_value() == "first line\n"
