"""The type of every tensor of a 7B and a 2B is the one that llama_model_quantize chooses."""

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize

from convert.errors import InvalidOption, NativeFailure
from convert.gguf.finite import is_finite
from convert.gguf.quantisers import Ggml
from convert.gguf.types import ADAPTER_TYPES, MULTIPLIABLE, GgmlType
from convert.models.mix import MODEL_TYPES, Mix, fitting, parse_type
from convert.rules.gemma import Hyperparameters

# Digests of "name type" lines, as llama_model_quantize (dry_run) of llama-cpp-python 0.3.36 logged them.
ORACLE = json.loads((Path(__file__).parent / "oracle_types.json").read_text())
SIZES = {
    "7b": Hyperparameters(28, 3072, 24576, 16, 16, 256, 1024, 8192, 1e-6),
    "2b": Hyperparameters(18, 2048, 16384, 8, 1, 256, 1024, 8192, 1e-6),
}


@pytest.mark.parametrize("case", ORACLE)
def test_every_choice_is_llama_cpps(case: str) -> None:
    """Every tensor's type is llama.cpp's, for 12 file types and two sizes, with an importance matrix and without."""
    size, type_name, *imatrix = case.split("-")
    mix = Mix(MODEL_TYPES[type_name], SIZES[size], has_importance=bool(imatrix))
    lines = sorted(f"{name} {mix.type_of(name, shape).name}" for name, shape in SIZES[size].tensor_shapes().items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == ORACLE[case]


def test_tensor_counts_are_gemmas() -> None:
    """254 tensors for 7B and 164 for 2B: nine a layer and two more."""
    assert [len(size.tensor_shapes()) for size in SIZES.values()] == [254, 164]


@pytest.mark.parametrize(
    ("kind", "n_columns", "stored"),
    [
        (GgmlType.Q4_K, 512, GgmlType.Q4_K),
        (GgmlType.Q4_K, 320, GgmlType.Q5_0),
        (GgmlType.Q5_K, 320, GgmlType.Q5_1),
        (GgmlType.Q6_K, 320, GgmlType.Q8_0),
        (GgmlType.Q3_K, 320, GgmlType.Q4_0),
        (GgmlType.Q2_K, 320, GgmlType.Q4_0),
        (GgmlType.IQ4_XS, 320, GgmlType.IQ4_NL),
        (GgmlType.Q8_0, 40, GgmlType.F16),
        (GgmlType.Q4_K, 40, GgmlType.F16),
    ],
)
def test_rows_that_do_not_fit(kind: GgmlType, n_columns: int, stored: GgmlType) -> None:
    """Rows that are not whole blocks fall back as llama.cpp's tensor_type_fallback does."""
    assert fitting(kind, n_columns) is stored


def test_block_sizes_are_ggufs() -> None:
    """The table of types agrees with the gguf package's, except for its one known mistake."""
    for kind in GgmlType:
        if kind is not GgmlType.Q8_1:  # gguf 0.19.0 says 40 bytes, ggml-common.h two F16 and 32 bytes
            assert (kind.block.n_values, kind.block.size_bytes) == GGML_QUANT_SIZES[GGMLQuantizationType(kind)]


@pytest.mark.parametrize("kind", sorted(ADAPTER_TYPES - {GgmlType.F32}))
def test_rows_there_and_back(kind: GgmlType) -> None:
    """What ggml encodes, both ggml and the gguf package decode alike; encoded rows are finite."""
    ggml = Ggml()
    rows = np.random.default_rng(1).standard_normal((3, 512)).astype(np.float32)
    encoded = ggml.quantize(kind, rows)
    decoded = ggml.dequantize(kind, encoded, 512)
    theirs = dequantize(encoded.reshape(3, -1), GGMLQuantizationType(kind)).reshape(3, 512)
    assert np.allclose(decoded, theirs, rtol=1e-6, atol=1e-7)
    assert np.abs(decoded - rows).mean() < 0.5
    assert is_finite(kind, encoded)


@pytest.mark.parametrize("kind", [GgmlType.F16, GgmlType.BF16, GgmlType.Q8_0])
def test_simple_types_are_the_gguf_packages(kind: GgmlType) -> None:
    """F16, BF16 and Q8_0 are the same bytes in ggml and in the gguf package, subnormals and ties included."""
    rows = (np.random.default_rng(2).standard_normal((8, 512)) * np.logspace(-12, 3, 512)).astype(np.float32)
    assert np.array_equal(
        Ggml().quantize(kind, rows), quantize(rows, GGMLQuantizationType(kind)).view(np.uint8).reshape(-1)
    )


def test_arguments_that_would_abort_are_refused() -> None:
    """Broken rows, a missing or wrong importance and integer types are errors instead of aborts of ggml."""
    ggml = Ggml()
    rows = np.ones((2, 256), np.float32)
    for refused in (
        lambda: ggml.quantize(GgmlType.Q4_K, rows[:, :100]),
        lambda: ggml.quantize(GgmlType.I32, rows),
        lambda: ggml.quantize(GgmlType.Q8_1, rows),
        lambda: ggml.quantize(GgmlType.IQ2_XXS, rows),
        lambda: ggml.quantize(GgmlType.Q4_K, rows, np.ones(3, np.float32)),
        lambda: ggml.dequantize(GgmlType.Q4_K, np.zeros(100, np.uint8), 256),
        lambda: ggml.dequantize(GgmlType.F64, np.zeros(2048, np.uint8), 256),
    ):
        with pytest.raises(NativeFailure):
            refused()
    assert GgmlType.I32 not in MULTIPLIABLE


def test_types_are_named_as_users_write_them() -> None:
    """Case and dashes do not matter; an unknown name lists the known ones."""
    assert parse_type(" Q4-K_M ", tuple(MODEL_TYPES)) == "q4_k_m"
    with pytest.raises(InvalidOption, match="choose one of f32, f16"):
        parse_type("q4", tuple(MODEL_TYPES))


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without llama-cpp-python or its library the message names what is missing."""
    monkeypatch.setattr("convert.gguf.quantisers.importlib.util.find_spec", lambda _: None)
    with pytest.raises(NativeFailure, match="llama-cpp-python is not installed"):
        Ggml()
    spec = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr("convert.gguf.quantisers.importlib.util.find_spec", lambda _: spec)
    with pytest.raises(NativeFailure, match="llama-cpp-python's library is missing"):
        Ggml()
