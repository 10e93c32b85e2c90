"""A blend's weights in the bank's layout, read from adapter files: no native memory, no model.

Members are stacked: A's by rows, B's by columns, each B times its scale and ``alpha / rank``. That is exact, since
``sum(s_i * B_i @ A_i) = [s_1 B_1, s_2 B_2, ...] @ [A_1; A_2; ...]``.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from convert.errors import ConvertError, MalformedFile
from convert.files import open_regular, read_at
from convert.gguf.header import GgufHeader, TensorInfo, read_header
from convert.gguf.quantisers import Ggml
from convert.gguf.types import GgmlType
from convert.rules.adapter import AdapterSummary, check_adapter
from runtime.errors import IncompatibleAdapter, InvalidAdapter, without_folders

LANE_TYPES = {"f32": GgmlType.F32, "f16": GgmlType.F16, "q8_0": GgmlType.Q8_0}
_CHUNK_BYTES = 4 << 20
# A file system's clock ticks every 1 ms to 2 s (FAT): a file written less than that before it was digested may have
# been written once more within the same tick, and its time would not tell.
_SETTLED_NS = 2_000_000_000
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class LanePart:
    """One weight's share of a lane, in the bank's type: A as ``rank`` rows, B as ``n_out`` rows of ``rank``."""

    name: str
    a: Bytes
    b: Bytes
    rank: int
    """Rows of A from here on are zero, and so are columns of B."""


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """What the file system says of an open file; a write that changes the content changes one of these."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int


class AdapterFile:
    """An adapter's checked header and its open file, which stays readable when its name is gone.

    The content belongs to a digest. ``verify`` proves that before and after the content is read, so that a file that
    was overwritten in place is an error and never another adapter under the old digest.
    """

    def __init__(self, path: Path, base: GgufHeader, digest: str | None = None) -> None:
        """Open and check ``path`` against its base model.

        Args:
            path: a GGUF adapter.
            base: the header of its base model.
            digest: the SHA-256 of its content in hexadecimal; None for a file that only this process can write.

        Raises:
            InvalidAdapter: the file cannot be read, or breaks a rule that its message names.
        """
        self._name = path.name
        self._base = base
        self._digest = digest
        self._verified: FileIdentity | None = None
        """The identity under which the digest was computed; None while it is in doubt."""
        try:
            self._file = open_regular(path)
        except ConvertError as error:
            raise InvalidAdapter(without_folders(str(error), path)) from error
        self._opened = self._identity()
        try:
            self._header = read_header(self.open_path)
            self.summary: AdapterSummary = check_adapter(self._header, base)
        except ConvertError as error:
            message = str(error).replace(str(self.open_path), self._name)
            self._file.close()
            raise InvalidAdapter(message) from error

    @property
    def rank(self) -> int:
        """The highest rank of its pairs."""
        return self.summary.max_rank

    @property
    def invocation(self) -> tuple[int, ...]:
        """The token sequence from which on an aLoRA applies; empty for a LoRA that applies to every token."""
        return self.summary.invocation_tokens

    @property
    def open_path(self) -> Path:
        """A path that leads to the open file, even after its name was deleted or given to another file."""
        # Where opening it only duplicates the descriptor (macOS), the last reader's offset is still set.
        os.lseek(self._file.fileno(), 0, os.SEEK_SET)
        return Path(f"/dev/fd/{self._file.fileno()}")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def verify(self) -> None:
        """Check that the open file holds the content of its digest, under the header that was read.

        The file system's word is enough where the digest was computed for the same identity, and late enough after
        the last write; the content is read and digested otherwise.

        Raises:
            InvalidAdapter: the content has changed since the adapter was added.
        """
        if self._digest is None or (self._verified is not None and self._verified == self._identity()):
            return
        before, started_ns = self._identity(), time.time_ns()
        is_same = self._digest_of_content() == self._digest and before == self._identity()
        if not is_same or (before != self._opened and not self._has_same_header()):
            raise InvalidAdapter(
                f"adapter file {self._name} was overwritten after the server had read it; its old content is gone: "
                "add the adapter again (and replace files by renaming, not by writing into them)"
            )
        self._opened = before
        self._verified = before if started_ns - before.modified_ns > _SETTLED_NS else None

    def _identity(self) -> FileIdentity:
        status = os.fstat(self._file.fileno())
        return FileIdentity(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)

    def _digest_of_content(self) -> str:
        digest, offset = hashlib.sha256(), 0
        while chunk := os.pread(self._file.fileno(), _CHUNK_BYTES, offset):
            digest.update(chunk)
            offset += len(chunk)
        return digest.hexdigest()

    def _has_same_header(self) -> bool:
        try:
            header = read_header(self.open_path)
        except ConvertError:
            return False
        return header.tensors == self._header.tensors and header.metadata == self._header.metadata

    def pair(self, weight: str) -> tuple[TensorInfo, TensorInfo] | None:
        """The tensors A and B of a weight, or None if the adapter does not change it."""
        a, b = (self._header.tensors.get(weight + suffix) for suffix in (".lora_a", ".lora_b"))
        return (a, b) if a is not None and b is not None else None

    def factor(self, rank: int) -> float:
        """What the file itself multiplies the product of a pair with (llama-adapter.h, get_scale)."""
        return self.summary.alpha / rank if self.summary.alpha else 1.0

    def read(self, tensor: TensorInfo) -> Bytes:
        """The bytes of a tensor: uint8 ``[size_bytes]``.

        Raises:
            InvalidAdapter: the file has become shorter.
        """
        try:
            data = read_at(self._file, tensor.offset, tensor.size_bytes)
        except MalformedFile as error:
            raise InvalidAdapter(f"adapter file {self._name} has become shorter since it was checked") from error
        return np.frombuffer(data, np.uint8)


def invocation_of(members: Iterable[AdapterFile]) -> tuple[int, ...]:
    """The token sequence that invokes a blend of these adapters; empty if the blend applies to every token.

    Raises:
        IncompatibleAdapter: the adapters do not all begin to apply at the same token.
    """
    invocations = {member.invocation for member in members}
    if len(invocations) > 1:
        raise IncompatibleAdapter(
            "an activated LoRA (aLoRA) can be blended only with others that have the same invocation tokens"
        )
    return invocations.pop() if invocations else ()


def lane_parts(
    members: Sequence[tuple[AdapterFile, float]], shapes: dict[str, tuple[int, int]], rank: int, lane_type: str
) -> Iterator[LanePart]:
    """One weight after another, those alone that some member changes.

    Args:
        members: adapters and the scales the request gave them; their ranks add up to at most ``rank``.
        shapes: ``(n_in, n_out)`` of every weight of the bank.
        rank: the bank's.
        lane_type: the bank's.

    Raises:
        InvalidAdapter: a file has become shorter.
    """
    ggml, kind = Ggml(), LANE_TYPES[lane_type]
    for name, (n_in, n_out) in shapes.items():
        pairs = [(file, scale, pair) for file, scale in members if (pair := file.pair(name)) is not None]
        if not pairs:
            continue
        a_rows = np.zeros((rank, kind.row_size_bytes(n_in)), np.uint8)
        b_columns = np.zeros((n_out, rank), np.float32)
        start = 0
        for file, scale, (a, b) in pairs:
            end = start + b.shape[0]
            a_rows[start:end] = _rows(ggml, kind, a, file.read(a)).reshape(end - start, -1)
            factor = np.float32(scale * file.factor(b.shape[0]))
            b_columns[:, start:end] = ggml.dequantize(b.type, file.read(b), b.shape[0]) * factor
            start = end
        yield LanePart(name, a_rows.reshape(-1), ggml.quantize(kind, b_columns), start)


def _rows(ggml: Ggml, kind: GgmlType, tensor: TensorInfo, data: Bytes) -> Bytes:
    """The tensor's rows in type ``kind``."""
    if tensor.type == kind:
        return data
    return ggml.quantize(kind, ggml.dequantize(tensor.type, data, tensor.shape[0]))
