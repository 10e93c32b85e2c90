"""What a check found, and how a terminal shows it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

_TOPIC_WIDTH: Final = 10
_MIN_WIDTH: Final = 40


class Severity(StrEnum):
    """How bad it is."""

    OK = "ok"
    NOTE = "note"
    """It works, and could be better."""
    FAULT = "fault"
    """The server will not start, or will not do what was asked."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, what was found, and what to do about it."""

    topic: str
    severity: Severity
    words: str
    advice: str = ""


def ok(topic: str, words: str) -> Finding:
    """Nothing to do."""
    return Finding(topic, Severity.OK, words)


def note(topic: str, words: str, advice: str) -> Finding:
    """Something that could be better."""
    return Finding(topic, Severity.NOTE, words, advice)


def fault(topic: str, words: str, advice: str = "") -> Finding:
    """Something that has to be put right."""
    return Finding(topic, Severity.FAULT, words, advice)


def render(findings: Sequence[Finding], width: int) -> str:
    """The findings as lines of at most ``width`` characters, and a last line that counts the faults."""
    lines: list[str] = []
    for finding in findings:
        head = f"{finding.severity:<5} {finding.topic:<{_TOPIC_WIDTH}} "
        words = finding.words + (f". {finding.advice}" if finding.advice else "")
        lines += textwrap.wrap(
            words,
            max(width, _MIN_WIDTH),
            initial_indent=head,
            subsequent_indent=" " * len(head),
            break_on_hyphens=False,
        )
    n_faults = sum(finding.severity is Severity.FAULT for finding in findings)
    n_notes = sum(finding.severity is Severity.NOTE for finding in findings)
    lines.append(f"\n{_count(n_faults, 'fault')}, {_count(n_notes, 'note')}")
    return "\n".join(lines)


def _count(number: int, word: str) -> str:
    return f"{number or 'no'} {word}{'' if number == 1 else 's'}"
