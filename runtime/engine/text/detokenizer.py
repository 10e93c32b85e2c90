"""Bytes of tokens to whole characters."""

from __future__ import annotations

import codecs


class Detokenizer:
    """Decodes the bytes of one answer. A character that is spread over tokens appears with its last byte."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, piece: bytes) -> str:
        """The characters that ``piece`` completes; bytes that are not UTF-8 become U+FFFD."""
        return self._decoder.decode(piece)

    def flush(self) -> str:
        """U+FFFD if the answer ends inside a character, else nothing."""
        return self._decoder.decode(b"", final=True)
