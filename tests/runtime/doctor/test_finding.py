"""How findings look on a terminal."""

from __future__ import annotations

from runtime.doctor.finding import fault, note, ok, render


def test_lines_wrap_under_their_words() -> None:
    """Long words and advice are one paragraph, indented, within the width; the last line counts."""
    text = render([ok("build", "fine"), fault("model", "no such file: base.gguf", "Make one with gemlane convert")], 44)
    assert text.splitlines() == [
        "ok    build      fine",
        "fault model      no such file: base.gguf.",
        "                 Make one with gemlane",
        "                 convert",
        "",
        "1 fault, no notes",
    ]


def test_counts_are_grammatical() -> None:
    """The summary counts faults and notes in the singular or plural, with "no" for none."""
    assert render([], 80).strip() == "no faults, no notes"
    assert render([note("a", "b", "c"), note("a", "b", "c")], 80).endswith("no faults, 2 notes")
