"""The safetensors reader believes nothing, and reads rows exactly."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from convert.errors import BadValue, MalformedSafetensors, QuantizedSource
from convert.tensors.safetensors import SafetensorsFile
from tests.convert.checkpoints import bf16, write_tensors


def file_of(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    """Write a safetensors file with any header."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def entry(dtype: object = "F32", shape: object = (2, 2), offsets: object = (0, 16)) -> dict[str, object]:
    """Describe one tensor."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


SIXTEEN = bytes(16)
LIES: dict[str, tuple[object, bytes, int | None, str]] = {
    "length beyond the file": ({}, b"", 1 << 20, "claims a header of 1048576"),
    "length of 2^63": ({}, b"", 1 << 63, "claims a header of"),
    "no JSON": (b"{", b"", None, "not valid JSON"),
    "a list": ([], b"", None, "its ninth byte does not open a JSON object"),
    "too deep": (b'{"a":' * 200_000, b"", None, "nested too deeply"),
    "a byte order mark": (b"\xef\xbb\xbf{}", b"", None, "its ninth byte does not open a JSON object"),
    "a name twice": (b'{"a":1,"a":2}', b"", None, "'a' occurs twice"),
    "no description": ({"a": 3}, b"", None, "not described by an object"),
    "unknown dtype": ({"a": entry(dtype="F4")}, SIXTEEN, None, "unknown type 'F4'"),
    "dtype a number": ({"a": entry(dtype=4)}, SIXTEEN, None, "unknown type 4"),
    "negative shape": ({"a": entry(shape=(-2, -2))}, SIXTEEN, None, "impossible shape"),
    "shape of floats": ({"a": entry(shape=(2.0, 2))}, SIXTEEN, None, "impossible shape"),
    "shape of bools": ({"a": entry(shape=(True, 4))}, SIXTEEN, None, "impossible shape"),
    "shape overflow": ({"a": entry(shape=(1 << 47, 1 << 47))}, SIXTEEN, None, "needs"),
    "nine dimensions": ({"a": entry(shape=(1,) * 9)}, SIXTEEN, None, "impossible shape"),
    "offsets reversed": ({"a": entry(offsets=(16, 0))}, SIXTEEN, None, "impossible data_offsets"),
    "three offsets": ({"a": entry(offsets=(0, 8, 16))}, SIXTEEN, None, "impossible data_offsets"),
    "size against shape": ({"a": entry(offsets=(0, 12))}, SIXTEEN, None, "needs 16 bytes, not 12"),
    "beyond the file": ({"a": entry(offsets=(8, 24))}, SIXTEEN, None, "ends at byte"),
    "overlap": ({"a": entry(), "b": entry(offsets=(8, 24))}, bytes(24), None, "'a' and 'b' overlap"),
    "same place": ({"a": entry(), "b": entry()}, SIXTEEN, None, "overlap"),
}


@pytest.mark.parametrize("case", LIES)
def test_refuses_what_lies(case: str, tmp_path: Path) -> None:
    """Each false header is refused in one line that names the file, and the tensor if there is one."""
    header, data, length, words = LIES[case]
    path = file_of(tmp_path / "x.safetensors", header, data, length)
    with pytest.raises(MalformedSafetensors, match=words) as caught:
        SafetensorsFile(path)
    assert str(path) in str(caught.value)


def test_rows_are_exact_in_every_type(tmp_path: Path) -> None:
    """F32, F16 and BF16 widen exactly; rows come from the middle; a vector is one row."""
    values = (np.arange(12, dtype=np.float32) - 5).reshape(4, 3)
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"f32": values, "f16": values.astype(np.float16), "bf16": bf16(values), "v": values[0]})
    with SafetensorsFile(path) as file:
        for name in ("f32", "f16", "bf16"):
            assert np.array_equal(file.read_rows(name, 1, 2), values[1:3])
        assert file.read_rows("v", 0, 1).shape == (1, 3)
        assert file.read("v").shape == (3,)


def test_other_types_and_bad_values_are_refused(tmp_path: Path) -> None:
    """Integers, NaN and infinity are refused when rows are read."""
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"u8": np.ones(4, np.uint8), "nan": np.array([np.nan], np.float32)})
    with SafetensorsFile(path) as file:
        with pytest.raises(QuantizedSource, match="has type U8"):
            file.read("u8")
        with pytest.raises(BadValue, match="holds NaN"):
            file.read("nan")


def test_a_file_cut_while_it_is_open_is_an_error(tmp_path: Path) -> None:
    """A file that is cut while it is open is an error; with a memory map it would crash the process."""
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": np.ones((1000, 100), np.float32)})
    with SafetensorsFile(path) as file:
        with path.open("r+b") as cut:
            cut.truncate(5000)
        with pytest.raises(MalformedSafetensors, match="the file ends at byte 5000"):
            file.read("a")
