"""The safetensors and GGUF readers beside those of the packages `safetensors` and `gguf`, on 10,000 mutated files each.

Nothing is accepted that the package refuses, and what both accept is the same.
"""

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import safetensors

from convert.errors import ConvertError
from convert.gguf.header import GgufHeader, read_header
from convert.tensors.safetensors import SafetensorsFile
from tests.convert.gguf_bytes import BOOL, I32, STRING, U32, Gguf, Tensor, entry, f32, string, text

N_FILES = 10_000
SIZES = {"F32": 4, "F16": 2, "BF16": 2, "U8": 1, "I64": 8, "BOOL": 1}
Header = dict[str, dict[str, object]]
Row = tuple[str, str, tuple[int, ...], bytes]


def _sound_header(chance: random.Random) -> tuple[Header, bytes]:
    """Make a header of a few tensors, some of them empty or scalars, and their bytes."""
    header: Header = {}
    data = b""
    for number in range(chance.randint(0, 4)):
        dtype = chance.choice(list(SIZES))
        shape = [chance.randint(0, 4) for _ in range(chance.randint(0, 3))]
        n_bytes = SIZES[dtype] * int(np.prod(shape, dtype=int))
        header[f"t{number}"] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + n_bytes]}
        data += bytes(chance.choices((0, 1), k=n_bytes)) if dtype == "BOOL" else chance.randbytes(n_bytes)
    if chance.random() < 0.5:
        header["__metadata__"] = {"format": "pt"}
    return header, data


def _lie(header: Header, chance: random.Random) -> None:
    """Change one thing that a header says."""
    names = [name for name in header if name != "__metadata__"]
    if not names:
        header["x"] = {"dtype": "F32", "shape": [chance.randint(0, 2)], "data_offsets": [0, chance.randint(0, 9)]}
        return
    tensor = header[chance.choice(names)]
    offsets, shape = list(tensor["data_offsets"]), list(tensor["shape"])  # type: ignore[call-overload]
    other = chance.choice(list(tensor))
    changed: object = chance.choice(
        (
            {"data_offsets": [offsets[0], offsets[1] + chance.choice((-4, -1, 1, 4, 1 << 40, 1 << 63, 1 << 70))]},
            {"data_offsets": [offsets[0] + chance.choice((-4, -1, 1, 4)), offsets[1]]},
            {"data_offsets": [offset + 8 for offset in offsets]},
            {"data_offsets": offsets[::-1]},
            {"shape": [*shape, chance.choice((0, 1, 2, -1, 1 << 33, 1 << 64))]},
            {"shape": [float(length) for length in shape] or [1.0]},
            {"dtype": chance.choice((*SIZES, "F64", "F8_E4M3", "Q4", "f32", 3, None))},
            {other: chance.choice(("x", 1.5, None, [], {}, True))},
            {"more": 1},
            None,
        )
    )
    if isinstance(changed, dict):
        tensor |= changed
    elif chance.random() < 0.5:
        del tensor[other]
    else:
        notes: object = chance.choice(({"a": 1}, {}, [], "x", {"a": None}))
        header["__metadata__"] = notes  # type: ignore[assignment]


def _safetensors(chance: random.Random) -> bytes:
    """Make a file that is sound, lies, or is damaged."""
    header, data = _sound_header(chance)
    kind = chance.random()
    if kind < 0.45:
        _lie(header, chance)
    raw = json.dumps(header, separators=(",", ":") if chance.random() < 0.5 else None).encode()
    raw += b" " * chance.choice((0, 0, -len(raw) % 8, 3))
    if kind > 0.9:
        raw = chance.choice(
            (b" " + raw, b"\xef\xbb\xbf" + raw, raw + b"\n", raw[:-1], raw + b"x", raw.replace(b"t0", b"t1"))
        )
    length = len(raw) + (chance.choice((-1, 1, 1 << 20, 1 << 40)) if 0.85 < kind < 0.9 else 0)
    content = bytearray(length.to_bytes(8, "little") + raw + data)
    if 0.6 < kind < 0.8:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    if 0.8 < kind < 0.83:
        content = content[: chance.randrange(len(content))]
    if 0.83 < kind < 0.85:
        content += b"\0" * chance.randint(1, 16)
    return bytes(content)


def _their_tensors(content: bytes) -> list[Row] | None:
    try:
        found = safetensors.deserialize(content)  # type: ignore[no-untyped-call]
    except Exception:  # noqa: BLE001 - the package's own error, or a panic of its Rust
        return None
    return sorted((name, one["dtype"], tuple(one["shape"]), bytes(one["data"])) for name, one in found)


def _our_tensors(path: Path) -> list[Row] | None:
    content = path.read_bytes()
    try:
        with SafetensorsFile(path) as file:
            tensors = file.tensors.values()
            return sorted((t.name, t.dtype, t.shape, content[t.offset : t.offset + t.size_bytes]) for t in tensors)
    except ConvertError:
        return None


def _sound_gguf(chance: random.Random) -> Gguf:
    made = Gguf([string("general.architecture", "gemma")], version=chance.choice((2, 3)))
    entries: list[Callable[[], bytes]] = [
        lambda: f32("a.float", chance.random()),
        lambda: entry("a.count", U32, struct.pack("<I", chance.randrange(1 << 32))),
        lambda: entry("a.flag", BOOL, bytes([chance.randint(0, 1)])),
        lambda: string("a.name", "é" * chance.randint(0, 9)),
        lambda: entry("a.list", 9, struct.pack("<IQ2i", I32, 2, 5, -7)),
        lambda: entry("a.words", 9, struct.pack("<IQ", STRING, 2) + text("x") + text("yz")),
    ]
    made.entries += [make() for make in chance.sample(entries, chance.randint(0, len(entries)))]
    for number in range(chance.randint(0, 3)):
        ne = [chance.choice((1, 2, 32)) for _ in range(chance.randint(1, 4))]
        made.tensors.append(Tensor(f"t{number}", ne))
    return made


def _gguf(chance: random.Random) -> bytes:
    """Make a file that is sound, lies, or is damaged."""
    made, kind = _sound_gguf(chance), chance.random()
    if 0.3 < kind < 0.5:
        match chance.randint(0, 5):
            case 0:
                made.n_entries = chance.choice((0, len(made.entries) + 1, 1 << 40))
            case 1:
                made.n_tensors = chance.choice((0, len(made.tensors) + 1, 1 << 40))
            case 2:
                made.version = chance.choice((0, 1, 4, 3 << 24))
            case 3:
                made.entries.append(made.entries[-1])
            case 4 if made.tensors:
                made.tensors[-1].offset = chance.choice((0, 1, 32, 1 << 40))
            case _ if made.tensors:
                made.tensors[-1].kind = chance.choice((1, 8, 12, 24, 31, 99))
    content = bytearray(made.bytes())
    if 0.5 < kind < 0.9:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    if kind > 0.9:
        content = content[: chance.randrange(len(content))]
    return bytes(content)


def _their_gguf(path: Path) -> gguf.GGUFReader | None:
    try:
        return gguf.GGUFReader(path)
    except Exception:  # noqa: BLE001 - the package raises whatever numpy or struct raise
        return None


def _assert_same(ours: GgufHeader, theirs: gguf.GGUFReader) -> None:
    """Compare metadata scalars, array lengths, and the table of tensors."""
    assert ours.metadata.keys() == {key for key in theirs.fields if not key.startswith("GGUF.")}
    for key, value in ours.metadata.items():
        kinds = theirs.fields[key].types
        assert int(ours.value_types[key]) == int(kinds[0])
        if isinstance(value, str | int | float):
            np.testing.assert_equal(value, theirs.fields[key].contents())
        else:
            assert value.length == len(theirs.fields[key].data)
    found = {t.name: (tuple(map(int, t.shape)), int(t.tensor_type), int(t.data_offset)) for t in theirs.tensors}
    assert {t.name: (t.shape, int(t.type), t.offset) for t in ours.tensors.values()} == found


def test_safetensors_files_are_read_as_the_package_reads_them(tmp_path: Path) -> None:
    """10,000 files, two in three of them broken: none is accepted against the package, and all bytes agree."""
    chance, path = random.Random(3), tmp_path / "x.safetensors"
    n_both = n_refused = n_theirs_alone = 0
    for number in range(N_FILES):
        content = _safetensors(chance)
        path.write_bytes(content)
        ours, theirs = _our_tensors(path), _their_tensors(content)
        assert ours is None or theirs is not None, f"file {number} is accepted here alone: {content!r}"
        assert ours is None or ours == theirs, f"file {number} is read differently: {content!r}"
        n_both += ours is not None
        n_refused += theirs is None
        n_theirs_alone += ours is None and theirs is not None
    assert n_both > N_FILES // 4
    assert n_refused > N_FILES // 4
    assert n_theirs_alone < N_FILES // 20


@pytest.mark.filterwarnings("ignore")
def test_gguf_files_are_read_as_the_package_reads_them(tmp_path: Path) -> None:
    """10,000 files, two in three of them broken: none is accepted against the package, and all that is read agrees."""
    chance, path = random.Random(4), tmp_path / "x.gguf"
    n_both = n_refused = 0
    for _ in range(N_FILES):
        path.write_bytes(_gguf(chance))
        try:
            ours = read_header(path)
        except ConvertError:
            n_refused += 1
            continue
        theirs = _their_gguf(path)
        assert theirs is not None, f"accepted here alone: {path.read_bytes()!r}"
        _assert_same(ours, theirs)
        n_both += 1
    assert n_both > N_FILES // 4
    assert n_refused > N_FILES // 4
