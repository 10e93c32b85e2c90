"""The lines of the Code dialog, run as they stand: each gives the answer that is on the screen."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.playground import Playground
from tests.tiny_gemma.facts import ANSWERS

CAPITAL = "What is the capital of France?"
AWKWARD = 'It\'s "quoted", \\ and $HOME `id`\nsecond line é 😀'
"""What a shell, Python and JavaScript each read differently."""


def lines_of(playground: Playground, language: str, column: str) -> str:
    """The lines that the dialog shows for a column."""
    playground.page.get_by_role("button", name="Code").click()
    playground.page.locator("#code").get_by_text(language, exact=True).click()
    playground.page.locator("#code-column").select_option(label=column)
    lines = playground.page.locator("#code pre").text_content()
    playground.page.keyboard.press("Escape")
    assert lines
    return str(lines)


def run(language: str, lines: str) -> str:
    """What the lines print; the test is skipped where their program is missing."""
    program = {"curl": "bash", "Python": sys.executable, "JavaScript": "node"}[language]
    if shutil.which(program) is None or (language == "Python" and find_spec("openai") is None):
        pytest.skip(f"{language} needs {'the package openai' if language == 'Python' else program}")
    flags = ["--input-type=module", "-e"] if language == "JavaScript" else ["-c"]
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [program, *flags, lines],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment,
        cwd=Path("/"),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("language", ["curl", "Python", "JavaScript"])
def test_the_lines_of_a_column_give_its_answer(playground: Playground, language: str) -> None:
    """Copied and run, the lines for the column pirate print what that column shows."""
    playground.set_parameter("Temperature", "0")
    playground.set_parameter("Top k", "7")
    answers = playground.ask(CAPITAL)
    printed = run(language, lines_of(playground, language, "pirate"))
    assert answers[1] == ANSWERS["pirate"][CAPITAL]
    assert answers[1] in printed


@pytest.mark.parametrize("language", ["curl", "Python", "JavaScript"])
def test_a_draft_with_quotes_arrives_as_it_was_written(playground: Playground, language: str) -> None:
    """Quotes, backslashes, newlines, dollars and emoji in a prompt survive each language's own quoting."""
    playground.choose_raw()
    playground.set_parameter("Temperature", "0")
    playground.set_parameter("Longest answer", "20")
    expected = playground.ask(AWKWARD)[0]
    lines = lines_of(playground, language, "Base model")
    printed = run(language, lines)
    assert expected
    assert expected.split("\n")[0] in printed


def test_the_lines_are_copied(playground: Playground) -> None:
    """The button puts the lines into the clipboard."""
    playground.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    playground.page.get_by_role("button", name="Code").click()
    playground.page.get_by_role("button", name="Copy").click()
    expect(playground.page.locator("#live")).to_have_text("Copied")
    copied = playground.page.evaluate("navigator.clipboard.readText()")
    assert copied == playground.page.locator("#code pre").text_content()
    assert copied.startswith("curl ")
