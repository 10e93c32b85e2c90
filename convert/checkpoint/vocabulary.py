"""The vocabulary as llama.cpp needs it, and the rules that keep llama.cpp from aborting on it.

This module does not know whether the pieces come from `tokenizer.model` or `tokenizer.json`.

Sources: llama.cpp src/llama-vocab.cpp (token types, byte tokens, end of generation); SentencePiece's
sentencepiece_model.proto (the type numbers, which llama.cpp shares).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final

import numpy as np

from convert.errors import MalformedTokenizer
from convert.gguf.header import ValueType
from convert.gguf.writer import KeyValue
from convert.rules.gemma import TURN_TOKENS

SPACE: Final = "\u2581"  # SentencePiece's visible space
_PADDING_SCORE: Final = -10000.0  # as llama.cpp's converter


class TokenType(IntEnum):
    """What a token is for."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Piece:
    """One token: its text (in SentencePiece's spelling), merge score and type."""

    text: str
    score: float
    type: TokenType


@dataclass(frozen=True, slots=True)
class AddedToken:
    """What a tokenizer's configuration says about one id."""

    text: str
    is_special: bool


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """All pieces by id, the special ids by role, and the chat template, if any; `warnings` are for the user."""

    pieces: Sequence[Piece]
    special_ids: dict[str, int]  # "bos", "eos", "unknown", "padding", "eot"
    adds_bos: bool
    adds_eos: bool
    chat_template: str | None
    warnings: tuple[str, ...] = ()

    def metadata(self) -> list[KeyValue]:
        """Return the `tokenizer.*` entries of a GGUF, in the order llama.cpp's converter writes them."""
        scores = np.array([piece.score for piece in self.pieces], np.float32)
        types = np.array([piece.type for piece in self.pieces], np.int32)
        ids = {role: self.special_ids[role] for role in self.special_ids if role != "eot"}
        entries = [
            KeyValue("tokenizer.ggml.model", ValueType.STRING, "llama"),
            KeyValue("tokenizer.ggml.pre", ValueType.STRING, "default"),
            KeyValue("tokenizer.ggml.tokens", ValueType.ARRAY, [_stored(piece) for piece in self.pieces]),
            KeyValue("tokenizer.ggml.scores", ValueType.ARRAY, scores),
            KeyValue("tokenizer.ggml.token_type", ValueType.ARRAY, types),
        ]
        entries += [KeyValue(f"tokenizer.ggml.{r}_token_id", ValueType.UINT32, i) for r, i in ids.items()]
        entries += [
            KeyValue("tokenizer.ggml.add_bos_token", ValueType.BOOL, self.adds_bos),
            KeyValue("tokenizer.ggml.add_sep_token", ValueType.BOOL, value=False),
            KeyValue("tokenizer.ggml.add_eos_token", ValueType.BOOL, self.adds_eos),
        ]
        if self.chat_template is not None:
            entries.append(KeyValue("tokenizer.chat_template", ValueType.STRING, self.chat_template))
        if "eot" in self.special_ids:
            entries.append(KeyValue("tokenizer.ggml.eot_token_id", ValueType.UINT32, self.special_ids["eot"]))
        entries.append(KeyValue("tokenizer.ggml.add_space_prefix", ValueType.BOOL, value=False))
        return entries


def complete(pieces: Sequence[Piece], added: dict[int, AddedToken], n_vocab: int, source: Path) -> list[Piece]:
    """Apply the added tokens, pad to the rows of the embedding, and check what llama.cpp would abort on.

    Args:
        pieces: By id, as the tokenizer file has them.
        added: By id, not negative; may rename tokens, and name ids beyond `pieces`. Those beyond the rows are left
            out.
        n_vocab: Rows of the embedding, which must have room for every piece.
        source: The tokenizer file, for errors.

    Raises:
        MalformedTokenizer: More pieces than rows, a text twice, or a byte token is missing.
    """
    whole = _with_added(pieces, added, n_vocab, source)
    seen: dict[str, int] = {}
    for token_id, piece in enumerate(whole):
        other = seen.setdefault(_stored(piece).decode("utf-8", "surrogateescape"), token_id)
        if other != token_id:
            raise MalformedTokenizer(f"{source}: tokens {other} and {token_id} have the same text {piece.text!r}")
    for byte in range(256):
        if whole[seen.get(f"<0x{byte:02X}>", 0)].type is not TokenType.BYTE:
            raise MalformedTokenizer(f"{source}: the byte token <0x{byte:02X}> is missing")
    return whole


def _with_added(pieces: Sequence[Piece], added: dict[int, AddedToken], n_vocab: int, source: Path) -> list[Piece]:
    n_pieces = len(pieces)
    while n_pieces > n_vocab and n_pieces - 1 in added:
        n_pieces -= 1  # an added token without a row, as [PAD] without resizing: no prompt can hold it
    if n_pieces > n_vocab:
        raise MalformedTokenizer(f"{source}: {n_pieces} pieces, but the embedding has only {n_vocab} rows")
    whole = list(pieces[:n_pieces])
    whole += [Piece(f"[PAD{i}]", _PADDING_SCORE, TokenType.UNUSED) for i in range(n_pieces, n_vocab)]
    for token_id, token in added.items():
        if token_id < n_vocab:
            before = whole[token_id]
            whole[token_id] = Piece(token.text, before.score, _added_type(before, token))
    for token_id, piece in enumerate(whole):
        if piece.text in TURN_TOKENS:  # whatever the files say: without them chat prompts fall apart
            whole[token_id] = Piece(piece.text, piece.score, TokenType.CONTROL)
    return whole


def _added_type(before: Piece, token: AddedToken) -> TokenType:
    if before.type in (TokenType.UNKNOWN, TokenType.BYTE):
        return before.type
    return TokenType.CONTROL if token.is_special else TokenType.USER_DEFINED


def _stored(piece: Piece) -> bytes:
    """Return a piece's bytes in a GGUF; user-defined ones are matched against raw text: real spaces."""
    is_raw = piece.type is TokenType.USER_DEFINED
    return (piece.text.replace(SPACE, " ") if is_raw else piece.text).encode()
