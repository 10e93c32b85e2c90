"""Reads `tokenizer.model`: the pieces of a SentencePiece BPE model, straight from its protobuf.

Only the fields that are needed are decoded; unknown ones are skipped, as protobuf asks.

Source: SentencePiece's sentencepiece_model.proto (ModelProto.pieces = 1, .trainer_spec = 2).
"""

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from convert.checkpoint.vocabulary import Piece, TokenType
from convert.errors import MalformedTokenizer
from convert.files import read_small, refuse_other_format
from convert.formats import START_BYTES

MAX_FILE_BYTES: Final = 64 << 20  # Gemma's is 4 MB
_BPE: Final = 2  # TrainerSpec.ModelType
_MODEL_TYPE_FIELD: Final = 3
_UNIGRAM: Final = 1  # its default


def read_pieces(path: Path) -> list[Piece]:
    """Read all pieces of a SentencePiece BPE model, by id.

    Raises:
        MissingFile, NotARegularFile, LfsPointer: As `files.read_small`.
        MalformedTokenizer: Not a SentencePiece model, or not one of BPE.
    """
    content = read_small(path, MAX_FILE_BYTES)
    pieces = []
    model_type = None
    try:
        for field, value in _fields(content):
            if field == 1 and isinstance(value, bytes):
                pieces.append(_piece(value))
            elif field == 2 and isinstance(value, bytes):
                model_type = dict(_fields(value)).get(_MODEL_TYPE_FIELD, _UNIGRAM)
    except (ValueError, struct.error, IndexError) as error:
        refuse_other_format(path, content[:START_BYTES], "a SentencePiece model", MalformedTokenizer)
        raise MalformedTokenizer(f"{path}: not a SentencePiece model: {error}") from error
    if not pieces:
        refuse_other_format(path, content[:START_BYTES], "a SentencePiece model", MalformedTokenizer)
        raise MalformedTokenizer(f"{path}: not a SentencePiece model: it holds no pieces")
    if model_type != _BPE:
        raise MalformedTokenizer(f"{path}: a SentencePiece model of another kind than BPE; Gemma's is BPE")
    return pieces


def _piece(message: bytes) -> Piece:
    text, score, kind = "", 0.0, TokenType.NORMAL
    for field, value in _fields(message):
        if field == 1 and isinstance(value, bytes):
            text = value.decode("utf-8")
        elif field == 2 and isinstance(value, bytes):
            (score,) = struct.unpack("<f", value)
        elif field == 3 and isinstance(value, int):
            kind = TokenType(value)
    if not math.isfinite(score):
        raise ValueError(f"the score of {text!r} is {score}")
    return Piece(text, score, kind)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield (field number, value) of one protobuf message: an int for varints, the raw bytes for the rest."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        field, wire = key >> 3, key & 7
        if wire == 0:
            number, position = _varint(message, position)
            yield field, number
            continue
        if wire == 2:
            n_bytes, position = _varint(message, position)
        elif wire in (1, 5):
            n_bytes = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {position}")
        if position + n_bytes > len(message):
            raise ValueError(f"{n_bytes} bytes are claimed at byte {position}, beyond the end")
        yield field, message[position : position + n_bytes]
        position += n_bytes


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError(f"a number longer than 10 bytes at byte {position}")
