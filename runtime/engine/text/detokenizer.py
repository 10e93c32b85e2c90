"""Bytes of tokens in, whole characters out."""

from __future__ import annotations

import codecs


class Detokenizer:
    """The text of one answer. A character whose bytes are spread over tokens comes out with its last byte."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, piece: bytes) -> str:
        """The characters that ``piece`` completes; bytes that can be no character become U+FFFD."""
        return self._decoder.decode(piece)

    def flush(self) -> str:
        """What an unfinished character at the end of the answer becomes: U+FFFD, or nothing."""
        return self._decoder.decode(b"", final=True)
