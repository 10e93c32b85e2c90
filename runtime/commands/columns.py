"""Answers side by side on a terminal. Pure: texts and a width to lines."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

MIN_COLUMN: Final = 24
"""Narrower columns are hard to read; then answers stand one below the other."""
_GAP: Final = " | "


@dataclass(frozen=True, slots=True)
class Column:
    """One answer: its title, its text so far, and a line about its speed."""

    title: str
    text: str
    footer: str


def render(columns: Sequence[Column], width: int) -> list[str]:
    """Lines of at most ``width`` cells: side by side if there is room, else one below the other."""
    n_columns = len(columns)
    each = (width - len(_GAP) * (n_columns - 1)) // n_columns
    if n_columns == 1 or each < MIN_COLUMN:
        return [line for column in columns for line in (*_head(column, width), *_foot(column, width), "")][:-1]
    heads, feet = [_head(column, each) for column in columns], [_foot(column, each) for column in columns]
    # Footers begin on one line, whatever the length of the texts above.
    n_head, n_foot = max(map(len, heads)), max(map(len, feet))
    cells = [_fill(head, n_head) + _fill(foot, n_foot) for head, foot in zip(heads, feet, strict=True)]
    return [_GAP.join(pad(cell, each) for cell in row).rstrip() for row in zip(*cells, strict=True)]


def _head(column: Column, width: int) -> list[str]:
    title = clip(column.title, width)
    return [title, "-" * n_cells(title), *wrap(column.text, width)]


def _foot(column: Column, width: int) -> list[str]:
    return wrap(column.footer, width)


def _fill(lines: list[str], n_lines: int) -> list[str]:
    return lines + [""] * (n_lines - len(lines))


def wrap(text: str, width: int) -> list[str]:
    """Words wrapped to ``width`` cells; the text's own line breaks stay."""
    lines: list[str] = []
    for paragraph in text.split("\n"):
        # textwrap counts characters: where characters are two cells wide half as many fit.
        is_wide = n_cells(paragraph) > len(paragraph)
        lines += textwrap.wrap(paragraph, max(1, width // 2 if is_wide else width)) or [""]
    return lines


def n_cells(text: str) -> int:
    """Cells that a terminal needs for ``text``."""
    return sum(0 if unicodedata.combining(one) else 1 + (unicodedata.east_asian_width(one) in "WF") for one in text)


def pad(text: str, width: int) -> str:
    """``text`` with blanks up to ``width`` cells."""
    return text + " " * (width - n_cells(text))


def clip(text: str, width: int) -> str:
    """``text`` cut to ``width`` cells."""
    while n_cells(text) > width:
        text = text[:-1]
    return text
