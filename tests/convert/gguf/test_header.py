"""The header reader believes nothing, allocates nothing large, and names what is wrong."""

import os
import resource
import socket
import struct
import time
from pathlib import Path

import pytest

from convert.errors import LfsPointer, MalformedGguf, MissingFile, NotARegularFile
from convert.gguf.header import ArrayInfo, ValueType, read_header
from convert.gguf.types import GgmlType
from tests.convert.gguf_bytes import ARRAY, I32, STRING, U32, Gguf, Tensor, adapter, entry, f32, pair, string, text


def write(path: Path, content: bytes) -> Path:
    """Write a file and return its path."""
    file = path / "file.gguf"
    file.write_bytes(content)
    return file


def test_reads_what_llama_cpp_would(tmp_path: Path) -> None:
    """Scalars, strings, array lengths and tensors come back with absolute offsets."""
    words = entry("words", ARRAY, struct.pack("<IQ", STRING, 2) + text("a") + text("bc"))
    gguf = Gguf(
        [string("general.architecture", "gemma"), f32("x", 0.5), words],
        [Tensor("t", (8, 2)), Tensor("u", (3,))],
    )
    header = read_header(write(tmp_path, gguf.bytes()))
    assert (header.string("general.architecture"), header.number("x")) == ("gemma", 0.5)
    assert header.value_types["x"] is ValueType.FLOAT32
    array = header.metadata["words"]
    assert isinstance(array, ArrayInfo)
    assert (array.item_type, array.length) == (ValueType.STRING, 2)
    tensor = header.tensors["t"]
    assert (tensor.type, tensor.shape, tensor.size_bytes) == (GgmlType.F32, (8, 2), 64)
    assert tensor.offset == header.data_offset
    assert header.tensors["u"].offset == header.data_offset + 64


def test_a_short_array_of_uint32_is_kept(tmp_path: Path) -> None:
    """The integers of a short array of uint32 are read; a long array and one of another type are skipped."""
    entries = [
        entry("short", ARRAY, struct.pack("<IQ3I", U32, 3, 5, 0, 2**32 - 1)),
        entry("long", ARRAY, struct.pack("<IQ", U32, 1025) + bytes(4 * 1025)),
        entry("signed", ARRAY, struct.pack("<IQi", I32, 1, -1)),
    ]
    metadata = read_header(write(tmp_path, Gguf(entries).bytes())).metadata
    arrays = [metadata[key] for key in ("short", "long", "signed")]
    assert [array.integers for array in arrays if isinstance(array, ArrayInfo)] == [(5, 0, 2**32 - 1), (), ()]


HOSTILE = {
    "empty": (b"", "not a GGUF"),
    "bad magic": (b"BAD!" + bytes(40), "not a GGUF"),
    "version 0": (Gguf(version=0).bytes(), "version 0"),
    "version 1": (Gguf(version=1).bytes(), "version 1"),
    "future version": (Gguf(version=99).bytes(), "version 99"),
    "byte-swapped": (Gguf(version=3 << 24).bytes(), "byte-swapped"),
    "2^63 keys": (Gguf(n_entries=1 << 63).bytes(), "number of metadata keys"),
    "2^63 tensors": (Gguf(n_tensors=1 << 63).bytes(), "number of tensors"),
    "2^60 long key": (Gguf([struct.pack("<Q", 1 << 60)], n_entries=1).bytes(), "length of a metadata key"),
    "2^60 long string": (
        Gguf([entry("k", STRING, struct.pack("<Q", 1 << 60))]).bytes(),
        "length of the value of 'k'",
    ),
    "2^60 long array": (
        Gguf([entry("k", ARRAY, struct.pack("<IQ", U32, 1 << 60))]).bytes(),
        "length of the array",
    ),
    "array beyond the end": (
        Gguf([entry("k", ARRAY, struct.pack("<IQ", U32, 1 << 20))]).bytes(),
        "ends inside",
    ),
    "strings beyond the end": (
        Gguf([entry("k", ARRAY, struct.pack("<IQ", STRING, 99))]).bytes(),
        "ends inside",
    ),
    "array of arrays": (Gguf([entry("k", ARRAY, struct.pack("<IQ", ARRAY, 1))]).bytes(), "holds arrays"),
    "unknown value type": (Gguf([entry("k", 77, b"")]).bytes(), "unknown type 77"),
    "empty key": (Gguf([string("", "v")]).bytes(), "empty"),
    "key twice": (Gguf([string("k", "v"), string("k", "w")]).bytes(), "'k' is there twice"),
    "bool of 2": (Gguf([entry("k", 7, b"\2")]).bytes(), "bool 2"),
    "no UTF-8": (Gguf([entry("k", STRING, text(b"\xff"))]).bytes(), "not UTF-8"),
    "alignment 3": (Gguf([entry("general.alignment", U32, struct.pack("<I", 3))]).bytes(), "power of two"),
    "alignment 0": (Gguf([entry("general.alignment", U32, bytes(4))]).bytes(), "general.alignment"),
    "alignment as text": (Gguf([string("general.alignment", "32")]).bytes(), "general.alignment"),
    "tensor twice": (Gguf(tensors=[Tensor("t", (4,)), Tensor("t", (4,))]).bytes(), "'t' is there twice"),
    "name of 64": (Gguf(tensors=[Tensor("t" * 64, (4,))]).bytes(), "length of a tensor's name"),
    "no dimensions": (Gguf(tensors=[Tensor("t", ())]).bytes(), "0 dimensions"),
    "five dimensions": (Gguf(tensors=[Tensor("t", (1,) * 5)]).bytes(), "5 dimensions"),
    "empty dimension": (Gguf(tensors=[Tensor("t", (4, 0))]).bytes(), "impossible shape"),
    "size overflow": (Gguf(tensors=[Tensor("t", (1 << 40, 1 << 40), data=b"")]).bytes(), "impossible shape"),
    "unknown tensor type": (Gguf(tensors=[Tensor("t", (4,), 4)]).bytes(), "type 4"),
    "broken blocks": (Gguf(tensors=[Tensor("t", (40,), 8, bytes(34))]).bytes(), "Q8_0 blocks"),
    "beyond the end": (Gguf(tensors=[Tensor("t", (64,), data=bytes(4))]).bytes(), "ends at byte"),
    "offset beyond the end": (Gguf(tensors=[Tensor("t", (4,), offset=1 << 40)]).bytes(), "ends at byte"),
    "offset overflow": (Gguf(tensors=[Tensor("t", (4,), offset=(1 << 64) - 32)]).bytes(), "ends at byte"),
    "misaligned": (Gguf(tensors=[Tensor("t", (4,), offset=4)]).bytes(), "not a multiple of 32"),
    "overlap": (
        Gguf(tensors=[Tensor("t", (16,)), Tensor("u", (4,), offset=32)]).bytes(),
        "'t' and 'u' overlap",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_refuses_what_lies(case: str, tmp_path: Path) -> None:
    """Each false header is refused in one line that names the file and the key or tensor."""
    content, words = HOSTILE[case]
    path = write(tmp_path, content)
    with pytest.raises(MalformedGguf, match=words) as caught:
        read_header(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_cut_is_an_error(tmp_path: Path) -> None:
    """A sound file cut at any byte is refused; no cut raises anything but our own error."""
    content = adapter(*pair(n_in=32, n_out=8, rank=1)).bytes()
    for length in range(len(content) - 1):
        with pytest.raises(MalformedGguf):
            read_header(write(tmp_path, content[:length]))


def test_a_pointer_of_git_lfs_is_named(tmp_path: Path) -> None:
    """The message for a git-LFS pointer names `git lfs pull`."""
    path = write(tmp_path, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(LfsPointer, match="git lfs pull"):
        read_header(path)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    """A FIFO does not block; directories, sockets and devices are refused, a missing file is named."""
    fifo, bound = tmp_path / "fifo", tmp_path / "socket"
    os.mkfifo(fifo)
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(bound))
        for path in (fifo, bound, tmp_path, Path("/dev/zero")):
            with pytest.raises(NotARegularFile):
                read_header(path)
    with pytest.raises(MissingFile, match="nothing-here"):
        read_header(tmp_path / "nothing-here")
    with pytest.raises(MissingFile):
        read_header(Path("a\0b"))


def test_a_sparse_terabyte_costs_nothing(tmp_path: Path) -> None:
    """A file of 1 TB that claims a header of zeros is refused in a moment, without its size in memory."""
    path = tmp_path / "huge.gguf"
    with path.open("wb") as file:
        file.write(Gguf([entry("k", ARRAY, struct.pack("<IQ", STRING, 1 << 21))], n_entries=2).bytes()[:-8])
        file.truncate(1 << 40)
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(MalformedGguf):
        read_header(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 200_000


def test_a_large_vocabulary_is_stepped_over(tmp_path: Path) -> None:
    """A vocabulary of 256,000 tokens is counted in little time and memory."""
    tokens = b"".join(text(f"token {i}") for i in range(256_000))
    gguf = Gguf([entry("tokens", ARRAY, struct.pack("<IQ", STRING, 256_000) + tokens), string("last", "here")])
    path = write(tmp_path, gguf.bytes())
    before_s = time.thread_time()
    header = read_header(path)
    assert time.thread_time() - before_s < 1.0
    assert header.string("last") == "here"
    array = header.metadata["tokens"]
    assert isinstance(array, ArrayInfo)
    assert array.length == 256_000
