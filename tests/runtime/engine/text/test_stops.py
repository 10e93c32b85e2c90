"""A stop string never shows, and nothing else is lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runtime.engine.text.stops import StopMatcher

letters = st.text("ab", max_size=12)


def run(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    """Return all text that comes out, and whether a stop string was found."""
    matcher = StopMatcher(stops)
    text = "".join(matcher.push(piece) for piece in pieces)
    return text + matcher.flush(), matcher.is_stopped


def expected(stops: list[str], text: str) -> tuple[str, bool]:
    """Return the text before the stop string that is complete first."""
    for end in range(len(text) + 1):
        starts = [text[:end].find(stop) for stop in stops if stop in text[:end]]
        if starts:
            return text[: min(starts)], True
    return text, False


@given(st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.lists(st.sampled_from("ab"), max_size=12))
def test_letter_by_letter_stops_at_the_first_whole_stop(stops: list[str], pieces: list[str]) -> None:
    """Overlapping, nested and repeated stop strings end the text where the first one is complete."""
    assert run(stops, pieces) == expected(stops, "".join(pieces))


@given(st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.lists(letters, max_size=6))
def test_no_stop_string_is_in_the_output(stops: list[str], pieces: list[str]) -> None:
    """For pieces of any length the output has no stop string, and without one it equals the input."""
    text, is_stopped = run(stops, pieces)
    assert not any(stop in text for stop in stops)
    assert is_stopped or text == "".join(pieces)


def test_text_is_held_back_only_as_far_as_needed() -> None:
    """Only text that may be the beginning of a stop string is held back."""
    matcher = StopMatcher(["END"])
    assert [matcher.push(piece) for piece in ("so E", "N", "OUGH E", "ND more")] == ["so ", "", "ENOUGH ", ""]
    assert matcher.is_stopped
    assert matcher.push("ignored") == ""
    assert matcher.flush() == ""
