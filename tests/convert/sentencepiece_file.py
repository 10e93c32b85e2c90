"""Writes a `tokenizer.model`: the protobuf of a SentencePiece BPE model, with pieces, scores and types alone."""

import struct
from collections.abc import Sequence
from pathlib import Path

from convert.checkpoint.vocabulary import Piece

_BPE = b"\x12\x02\x18\x02"  # ModelProto.trainer_spec with TrainerSpec.model_type = BPE


def write_model(path: Path, pieces: Sequence[Piece]) -> Path:
    """Write the pieces, by id."""
    path.write_bytes(b"".join(b"\x0a" + _sized(_piece(piece)) for piece in pieces) + _BPE)
    return path


def _piece(piece: Piece) -> bytes:
    return b"\x0a" + _sized(piece.text.encode()) + b"\x15" + struct.pack("<f", piece.score) + bytes((0x18, piece.type))


def _sized(raw: bytes) -> bytes:
    """Return bytes behind their length as a varint."""
    length, encoded = len(raw), bytearray()
    while length > 0x7F:
        encoded.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes((*encoded, length)) + raw
