"""Builds GGUF files by hand, sound or lying, from the layout alone; uses neither reader nor writer."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

U32, I32, F32, BOOL, STRING, ARRAY, F64 = 4, 5, 6, 7, 8, 9, 12


def text(value: str | bytes) -> bytes:
    """Encode a string."""
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def entry(key: str, kind: int, raw: bytes) -> bytes:
    """Encode a metadata entry from its value's bytes."""
    return text(key) + struct.pack("<I", kind) + raw


def string(key: str, value: str) -> bytes:
    """Encode a string entry."""
    return entry(key, STRING, text(value))


def f32(key: str, value: float) -> bytes:
    """Encode a float32 entry."""
    return entry(key, F32, struct.pack("<f", value))


@dataclass
class Tensor:
    """A tensor to write; `ne` is fastest first, `data` may be any bytes, `offset` may lie."""

    name: str
    ne: Sequence[int]
    kind: int = 0
    data: bytes | None = None
    offset: int | None = None

    def bytes(self) -> bytes:
        """Return the data: given, or ones in float32."""
        if self.data is not None:
            return self.data
        n_values = 1
        for length in self.ne:
            n_values *= length
        return struct.pack("<f", 1.0) * n_values


@dataclass
class Gguf:
    """A GGUF file in the making; counts may lie."""

    entries: list[bytes] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    magic: bytes = b"GGUF"
    version: int = 3
    n_entries: int | None = None
    n_tensors: int | None = None

    def bytes(self) -> bytes:
        """Return the file."""
        out = self.magic + struct.pack("<I", self.version)
        out += struct.pack("<Q", len(self.tensors) if self.n_tensors is None else self.n_tensors)
        out += struct.pack("<Q", len(self.entries) if self.n_entries is None else self.n_entries)
        out += b"".join(self.entries)
        offset, data = 0, b""
        for tensor in self.tensors:
            out += text(tensor.name) + struct.pack("<I", len(tensor.ne))
            out += struct.pack(f"<{len(tensor.ne)}Q", *tensor.ne)
            out += struct.pack("<IQ", tensor.kind, offset if tensor.offset is None else tensor.offset)
            raw = tensor.bytes()
            raw += bytes(-len(raw) % 32)
            data += raw
            offset += len(raw)
        return out + bytes(-len(out) % 32) + data


def adapter(*tensors: Tensor, alpha: bytes | None = None, **strings: str) -> Gguf:
    """Return a Gemma adapter with the given tensors; `strings` replace kind, type or arch."""
    values = {"kind": "adapter", "type": "lora", "arch": "gemma"} | strings
    entries = [
        string("general.architecture", values["arch"]),
        string("general.type", values["kind"]),
        string("adapter.type", values["type"]),
        f32("adapter.lora.alpha", 16.0) if alpha is None else alpha,
    ]
    return Gguf(entries, list(tensors))


def pair(weight: str = "blk.0.attn_q.weight", n_in: int = 256, n_out: int = 256, rank: int = 4) -> list[Tensor]:
    """Return a sound pair for a weight of the tiny Gemma."""
    return [Tensor(f"{weight}.lora_a", (n_in, rank)), Tensor(f"{weight}.lora_b", (rank, n_out))]
