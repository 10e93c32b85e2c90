"""The random models have Gemma's shape and vocabulary, and logits that depend on the prompt."""

from pathlib import Path

import llama_cpp
import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize
from numpy.typing import NDArray

from scripts.make_shapes import (
    FILE_TYPES,
    FIRST_WORD_ID,
    SHAPES,
    TYPES,
    adapter_folder,
    draw_rows,
    model_path,
    vocabulary,
    write_model,
)


def last_logits(model: llama_cpp.Llama, prompt: str) -> NDArray[np.float32]:
    """The logits after the last token of `prompt`, `[n_vocab]` F32."""
    tokens = model.tokenize(prompt.encode())
    model.reset()
    model.eval(tokens)
    return np.array(model.scores[len(tokens) - 1])


def open_model(path: Path, **options: object) -> llama_cpp.Llama:
    """Loads a file with one thread and every row's logits kept."""
    return llama_cpp.Llama(
        str(path), n_ctx=64, n_threads=1, n_threads_batch=1, logits_all=True, verbose=False, **options
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the module's files."""
    return tmp_path_factory.mktemp("shapes")


@pytest.mark.parametrize("type_name", FILE_TYPES)
def test_llama_cpp_computes_lively_logits_in_every_type(folder: Path, type_name: str) -> None:
    """In every type logits are finite and spread, depend on the prompt, and their largest is a word's."""
    model = open_model(model_path(folder, "tiny", type_name))
    rows = [last_logits(model, f" 5 {number} 11") for number in range(20, 40)]
    model.close()
    assert np.isfinite(rows).all()
    assert 1.5 < np.std(rows[0][FIRST_WORD_ID:-1]) < 2.5
    assert not np.any(np.delete(rows, np.s_[FIRST_WORD_ID:-1], axis=1))
    winners = [int(row.argmax()) for row in rows]
    assert min(winners) >= FIRST_WORD_ID
    assert len(set(winners)) > 10


def test_each_adapter_changes_the_logits(folder: Path) -> None:
    """Each adapter changes the logits, and two adapters change them differently."""
    base = model_path(folder, "tiny", "q4_0")
    adapters = sorted(adapter_folder(folder, "tiny", 2, 16, "q8_0").iterdir())
    assert [path.name for path in adapters] == ["001.gguf", "002.gguf"]
    rows = []
    for path in (None, *adapters):
        model = open_model(base, lora_path=path and str(path))
        rows.append(last_logits(model, " 5 7 11"))
        model.close()
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(rows[one] - rows[other]).max() > 0.5


def test_a_number_after_a_space_is_one_token(folder: Path) -> None:
    """A number after a space is one token, so a prompt's length in tokens is exact."""
    model = open_model(model_path(folder, "tiny", "q4_0"))
    tokens = model.tokenize(b" 7 42 1000")
    special = [model.token_bos(), model.token_eos()]
    model.close()
    assert tokens == [2, FIRST_WORD_ID + 7, FIRST_WORD_ID + 42, FIRST_WORD_ID + 1000]
    assert special == [2, 1]


def test_the_vocabulary_has_gemmas_layout() -> None:
    """Special, newline, space, tag and byte tokens have the ids of Gemma's tokenizer."""
    pieces, scores, types = vocabulary(256_000)
    assert len(pieces) == len(scores) == len(types) == len(set(pieces)) == 256_000
    known = {0: "<pad>", 1: "<eos>", 2: "<bos>", 3: "<unk>", 4: "<mask>", 5: "<2mass>", 6: "[@BOS@]"}
    known |= {7: "<unused0>", 105: "<unused98>", 106: "<start_of_turn>", 107: "<end_of_turn>", 108: "\n"}
    known |= {138: "\n" * 31, 139: "▁▁", 168: "▁" * 31, 169: "<table>", 216: "</code>", 217: "<0x00>"}
    known |= {227: "<0x0A>", 472: "<0xFF>", 255_999: "<unused99>"}
    assert {token: pieces[token] for token in known} == known


@pytest.mark.parametrize("type_name", [*TYPES, "q4_k", "q6_k"])
def test_random_rows_have_mean_zero_and_the_asked_deviation(type_name: str) -> None:
    """Random rows, decoded by the gguf package, have mean zero and the deviation that was asked for."""
    kind = GGMLQuantizationType[type_name.upper()]
    rows = draw_rows(np.random.default_rng(1), 64, 1024, kind, 0.02)
    assert rows.shape == (64, 1024 // GGML_QUANT_SIZES[kind][0] * GGML_QUANT_SIZES[kind][1])
    values = dequantize(rows, kind).astype(np.float64)
    assert abs(values.mean()) < 0.001
    assert values.std() == pytest.approx(0.02, rel=0.02)


def test_a_file_depends_on_its_seed_alone(tmp_path: Path) -> None:
    """Two runs with one seed write the same bytes, and leave no other file."""
    for name in ("one.gguf", "two.gguf"):
        write_model(tmp_path / name, SHAPES["tiny"], "q8_0")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.gguf", "two.gguf"]
    one, two = (GGUFReader(tmp_path / name) for name in ("one.gguf", "two.gguf"))
    for mine, other in zip(one.tensors, two.tensors, strict=True):
        assert mine.name == other.name
        assert np.array_equal(mine.data, other.data)
