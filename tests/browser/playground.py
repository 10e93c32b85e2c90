"""The page as a test sees it: what a reader does and reads, by the names that a screen reader says."""

from __future__ import annotations

import time

from playwright.sync_api import Locator, Page, expect

TIMEOUT_S = 20
NARROW = 960
"""Below this width, in CSS pixels, the parameters lie over the columns."""


class Playground:
    """One open page."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self._announced = [
            "ERR_CONNECTION_REFUSED"
        ]  # by a server that ended before its page; no other test can meet it

    def may_log(self, *texts: str) -> None:
        """Announce console errors that hold one of these texts; others fail the test."""
        self._announced += texts

    def is_announced(self, error: str) -> bool:
        """Whether the test provokes this console error."""
        return any(text in error for text in self._announced)

    @property
    def heads(self) -> Locator:
        """The heads of the columns."""
        return self.page.locator(".head")

    @property
    def prompt(self) -> Locator:
        """The field for prompts."""
        return self.page.get_by_role("textbox", name="Prompt for every column")

    def wait_for_columns(self, count: int) -> None:
        """Wait until the page has met the server and shows this many columns."""
        expect(self.heads).to_have_count(count)

    def titles(self) -> list[str]:
        """The columns' titles, from left to right."""
        return list(self.page.locator(".choose-title").all_inner_texts())

    def add_column(self, *adapters: str) -> None:
        """Add a column of these adapters; none is the base model."""
        count = self.heads.count()
        self.page.get_by_role("button", name="Add a column").click()
        for adapter in adapters:
            self.page.get_by_role("checkbox", name=adapter).check()
        self.page.locator("#picker .primary").click()
        expect(self.heads).to_have_count(count + 1)

    def send(self, prompt: str) -> None:
        """Write a prompt and send it."""
        self.prompt.fill(prompt)
        self.page.get_by_role("button", name="Send").click()

    def ask(self, prompt: str) -> list[str]:
        """Send a prompt, wait for all columns, and give their answers."""
        self.send(prompt)
        self.wait_until_done()
        return self.answers()

    def wait_until_done(self) -> None:
        """Wait until no column runs any more."""
        expect(self.page.get_by_role("button", name="Send")).to_be_visible(timeout=60_000)
        expect(self.page.locator('.answer[aria-busy="true"]')).to_have_count(0)

    def answers(self, turn: int = -1) -> list[str]:
        """The texts of one turn's answers, from left to right."""
        turns = self.page.locator(".turn")
        chosen = turns.nth(turn if turn >= 0 else turns.count() + turn)
        return [text.strip() for text in chosen.locator(".answer-text").all_inner_texts()]

    def set_parameter(self, label: str, value: str) -> None:
        """Set a parameter by its number field; the panel, where it covers a narrow page, is closed again."""
        if not self.page.locator("#parameters").is_visible():
            self.page.get_by_role("button", name="Parameters", exact=True).click()
        field = self.page.get_by_label(label, exact=True)
        field.fill(value)
        field.blur()
        if self.page.viewport_size["width"] < NARROW:
            self.page.get_by_role("button", name="Close the parameters").click()

    def choose_raw(self) -> None:
        """Take prompts as they stand."""
        self.page.locator(".modes").get_by_text("Raw").click()

    def stream_for_long(self, longest: str = "450") -> None:
        """Send a raw prompt to which the tiny Gemma and its adapters repeat one word until they are stopped."""
        self.choose_raw()
        self.set_parameter("Temperature", "0")
        self.set_parameter("Longest answer", longest)
        self.send("Hello the")

    def expect_streaming(self, count: int) -> None:
        """Wait until this many columns show text and go on; ``expect`` would soon look only once a second."""
        streaming = self.page.locator('.answer[data-status="streaming"]')
        deadline = time.monotonic() + TIMEOUT_S
        while streaming.count() != count:
            assert time.monotonic() < deadline, self.page.locator(".turn").last.inner_text()
            self.page.wait_for_timeout(20)
