"""Reads `tokenizer.json` (Hugging Face tokenizers): BPE with byte fallback, as pieces with scores.

The file has no scores, only merges in order. llama.cpp joins the neighbours whose joined piece has the
highest score, so a piece's score is minus the rank of the first merge that makes it: the same order of
joins.

transformers writes Gemma's byte token of the tab, `<0x09>`, as a literal tab. A character in the place of
a byte token is read as that byte token.

Source: the tokenizers project's serialisation of its BPE model; llama.cpp src/llama-vocab.cpp
llm_tokenizer_spm.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from convert.checkpoint.vocabulary import AddedToken, Piece, TokenType
from convert.errors import MalformedTokenizer
from convert.files import read_json_object

MAX_FILE_BYTES: Final = 64 << 20  # Gemma's is 17 MB, Gemma 3's 33 MB
_BYTE: Final = re.compile(r"<0x[0-9A-F]{2}>")
_N_ASCII: Final = 128  # a byte above stands for no character of its own


def read_tokenizer_json(path: Path) -> tuple[list[Piece], dict[int, AddedToken]]:
    """Read the pieces by id, and the added tokens.

    Raises:
        MalformedJson: Not JSON.
        MalformedTokenizer: Not BPE with byte fallback, or ids with gaps, or merges of unknown pieces.
    """
    content = read_json_object(path, MAX_FILE_BYTES)
    model = content.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE" or model.get("byte_fallback") is not True:
        raise MalformedTokenizer(f"{path}: Gemma's tokenizer is BPE with byte fallback; this one is not")
    vocab, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocab, dict) or not isinstance(merges, list):
        raise MalformedTokenizer(f"{path}: model.vocab must be an object and model.merges a list")
    added = _added_tokens(content.get("added_tokens", []), path)
    texts = _by_id(vocab, added, path)
    ranks = _ranks(merges, path)
    unknown = model.get("unk_token")
    lowest = -float(len(merges)) - 1.0
    bytes_by_character = _bytes_by_character(vocab)
    pieces = []
    for token_id, written in enumerate(texts):
        text = bytes_by_character.get(written, written)
        if text == unknown:
            piece = Piece(text, 0.0, TokenType.UNKNOWN)
        elif _BYTE.fullmatch(text):
            piece = Piece(text, 0.0, TokenType.BYTE)
        elif token_id in added:
            piece = Piece(text, 0.0, TokenType.USER_DEFINED)
        else:
            rank = ranks.get(text)
            piece = Piece(text, lowest if rank is None else -float(rank), TokenType.NORMAL)
        pieces.append(piece)
    return pieces, added


def _bytes_by_character(vocab: Mapping[str, object]) -> dict[str, str]:
    """Return character -> byte token, for characters whose id is that of the byte token."""
    ids = {byte: token_id for byte in range(256) if type(token_id := vocab.get(f"<0x{byte:02X}>")) is int}
    first = min((token_id - byte for byte, token_id in ids.items()), default=0)
    missing = (byte for byte in range(_N_ASCII) if byte not in ids)
    return {chr(byte): f"<0x{byte:02X}>" for byte in missing if vocab.get(chr(byte)) == first + byte}


def _added_tokens(entries: object, path: Path) -> dict[int, AddedToken]:
    if not isinstance(entries, list):
        raise MalformedTokenizer(f"{path}: added_tokens must be a list")
    added = {}
    for entry in entries:
        token_id = entry.get("id") if isinstance(entry, dict) else None
        text = entry.get("content") if isinstance(entry, dict) else None
        if type(token_id) is not int or token_id < 0 or not isinstance(text, str):
            raise MalformedTokenizer(f"{path}: an added token lacks its id or content")
        added[token_id] = AddedToken(text, is_special=entry.get("special") is True)
    return added


def _by_id(vocab: dict[str, object], added: dict[int, AddedToken], path: Path) -> list[str]:
    texts: dict[int, str] = {}
    for text, token_id in vocab.items():
        if type(token_id) is not int or token_id < 0 or token_id in texts:
            raise MalformedTokenizer(f"{path}: {text[:80]!r} has the id {token_id!r}, which is not a new id")
        texts[token_id] = text
    for token_id, token in added.items():
        texts.setdefault(token_id, token.text)
    for token_id in range(len(texts)):
        if token_id not in texts:
            raise MalformedTokenizer(f"{path}: there is no token with id {token_id} among {len(texts)}")
    return [texts[token_id] for token_id in range(len(texts))]


def _ranks(merges: list[object], path: Path) -> dict[str, int]:
    """Return the rank of the first merge that makes each piece; a merge is `["a", "b"]` or `"a b"`."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
            raise MalformedTokenizer(f"{path}: merge {rank} is not a pair of pieces")
        ranks.setdefault("".join(parts), rank)
    return ranks
