"""Answers side by side: every line fits, columns align, and narrow terminals get one below the other."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runtime.commands.columns import Column, n_cells, render, wrap

TEXTS = st.text(alphabet=st.sampled_from("abc \n\u00e9\u4e2d\U0001f600e\u0301"), max_size=80)


def test_two_answers_stand_side_by_side() -> None:
    """Titles, texts and footers each begin on one line; the shorter text is filled up."""
    lines = render([Column("base", "one two three four five six seven", "fast"), Column("pirate", "arr", "slow")], 60)
    assert lines == [
        "base                         | pirate",
        "----                         | ------",
        "one two three four five six  | arr",
        "seven                        |",
        "fast                         | slow",
    ]


def test_a_narrow_terminal_gets_one_below_the_other() -> None:
    """On a phone's 40 columns two answers follow each other."""
    lines = render([Column("base", "one", "fast"), Column("pirate", "arr", "slow")], 40)
    assert lines == ["base", "----", "one", "fast", "", "pirate", "------", "arr", "slow"]


@given(st.lists(TEXTS, min_size=1, max_size=8), st.integers(40, 200))
def test_no_line_is_wider_than_the_terminal(texts: list[str], width: int) -> None:
    """Whatever the answers hold, no line overflows, so that drawing over them works."""
    columns = [Column(f"adapter-{number}", text, "12 tokens, first after 0.10 s") for number, text in enumerate(texts)]
    assert all(n_cells(line) <= width for line in render(columns, width))


@given(TEXTS, st.integers(24, 80))
def test_wrapping_loses_no_word(text: str, width: int) -> None:
    """Wrapped lines have all characters of the text but white space, in order."""
    assert "".join("".join(wrap(text, width)).split()) == "".join(text.split())
