"""Text comes out in whole characters, however its bytes are cut."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from runtime.engine.text.detokenizer import Detokenizer


def texts_of(pieces: list[bytes]) -> list[str]:
    """Return the text of each piece, and the text of the flush at the end."""
    detokenizer = Detokenizer()
    return [*(detokenizer.push(piece) for piece in pieces), detokenizer.flush()]


@given(st.text(), st.data())
def test_every_cut_gives_the_same_text(text: str, data: st.DataObject) -> None:
    """Valid UTF-8 cut anywhere gives the same text, without a replacement character of our own."""
    raw = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=8)))
    bounds = [0, *cuts, len(raw)]
    parts = texts_of([raw[start:end] for start, end in itertools.pairwise(bounds)])
    assert "".join(parts) == text


@given(st.lists(st.binary(max_size=5), max_size=8))
def test_any_bytes_give_what_they_give_at_once(pieces: list[bytes]) -> None:
    """Bytes that are not UTF-8 become the same replacements whether they come together or apart."""
    assert "".join(texts_of(pieces)) == b"".join(pieces).decode(errors="replace")


def test_a_character_comes_with_its_last_byte() -> None:
    """An emoji whose four bytes come in four tokens appears with the fourth."""
    assert texts_of([bytes([byte]) for byte in "🐈".encode()]) == ["", "", "", "🐈", ""]


def test_an_unfinished_character_ends_as_a_replacement() -> None:
    """An answer that ends inside a character ends with U+FFFD."""
    assert texts_of([b"a\xf0\x9f"]) == ["a", "\ufffd"]
