"""The vocabulary makes llama.cpp tokenise as SentencePiece does, from either tokenizer file; bad ones are refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llama_cpp import Llama

from convert.checkpoint.sentencepiece import read_pieces
from convert.checkpoint.tokenizer import read_vocabulary
from convert.checkpoint.vocabulary import TokenType
from convert.conversion.conversion import Options, convert_model
from convert.errors import ConvertError, MalformedJson, MalformedTokenizer
from convert.gguf.header import read_header
from tests.convert.checkpoints import checkpoint
from tests.tiny_gemma.files import BASE

TOKENS = json.loads((Path(__file__).parent / "reference_tokens.json").read_text())
N_VOCAB = 1024


def json_only(directory: Path) -> Path:
    """Save the tokenizer as transformers 5 does: tokenizer.json, and a configuration without added tokens."""
    checkpoint(directory)
    (directory / "tokenizer.model").unlink()
    shutil.copyfile(BASE / "tokenizer.json", directory / "tokenizer.json")
    (directory / "tokenizer_config.json").write_text('{"tokenizer_class": "GemmaTokenizer"}')
    template = json.loads((BASE / "tokenizer_config.json").read_text())["chat_template"]
    (directory / "chat_template.jinja").write_text(template)
    return directory


@pytest.mark.parametrize(("build", "column"), [(checkpoint, 1), (json_only, 2)])
def test_llama_cpp_tokenises_as_the_original(build: Callable[[Path], Path], column: int, tmp_path: Path) -> None:
    """Facts, odd spaces, special tokens and wide text get the ids of SentencePiece or Hugging Face tokenizers."""
    path = tmp_path / "base.gguf"
    convert_model(build(tmp_path / "model"), path, Options("q8_0"))
    llama = Llama(str(path), vocab_only=True, verbose=False)
    try:
        differing = [
            (row[0], row[column], found)
            for row in TOKENS
            if (found := llama.tokenize(row[0].encode(), add_bos=False, special=True)) != row[column]
        ]
    finally:
        llama.close()
    assert differing == []
    assert len(TOKENS) > 250


def test_both_files_give_one_vocabulary(tmp_path: Path) -> None:
    """Texts, types, special ids and the template agree; only the numbers behind the order of merges differ."""
    model, other = read_vocabulary(BASE, N_VOCAB), read_vocabulary(json_only(tmp_path / "model"), N_VOCAB)
    assert [piece.text for piece in model.pieces] == [piece.text for piece in other.pieces]
    assert model.special_ids == other.special_ids == {"bos": 2, "eos": 1, "unknown": 3, "padding": 0, "eot": 107}
    assert (model.adds_bos, model.adds_eos) == (other.adds_bos, other.adds_eos) == (True, False)
    assert model.chat_template == other.chat_template
    learned = [i for i, piece in enumerate(model.pieces) if piece.type is TokenType.NORMAL]
    by_score = sorted((i for i in learned if len(model.pieces[i].text) > 1), key=lambda i: -model.pieces[i].score)
    scores = [other.pieces[i].score for i in by_score]
    assert scores == sorted(scores, reverse=True)


def test_types_are_the_files_own() -> None:
    """Control tokens are control, html tags are matched in raw text, bytes are bytes."""
    pieces = read_vocabulary(BASE, N_VOCAB).pieces
    types = [pieces[i].type for i in (0, 1, 2, 3, 106, 107, 108, 139, 169, 217, 472, 600)]
    control, user = TokenType.CONTROL, TokenType.USER_DEFINED
    assert types[:6] == [control, control, control, TokenType.UNKNOWN, control, control]
    assert types[6:9] == [user, user, user]
    assert types[9:] == [TokenType.BYTE, TokenType.BYTE, TokenType.NORMAL]


def test_metadata_says_what_llama_cpp_needs(base_gguf: Path) -> None:
    """The metadata says that <bos> is added, that no space is put in front, and which token ends a turn."""
    metadata = read_header(base_gguf).metadata
    assert metadata["tokenizer.ggml.add_bos_token"] is True
    assert metadata["tokenizer.ggml.add_space_prefix"] is False
    assert metadata["tokenizer.ggml.eot_token_id"] == 107


def _json_changed(directory: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    json_only(directory)
    content = json.loads((BASE / "tokenizer.json").read_text())
    change(content)
    (directory / "tokenizer.json").write_text(json.dumps(content))
    return directory


def _file(directory: Path, name: str, content: bytes) -> Path:
    checkpoint(directory)
    (directory / name).write_bytes(content)
    return directory


def _spm(directory: Path, change: Callable[[bytes], bytes]) -> Path:
    return _file(directory, "tokenizer.model", change((BASE / "tokenizer.model").read_bytes()))


def _decoder(directory: Path, token_id: str, text: object) -> Path:
    config = {"added_tokens_decoder": {token_id: {"content": text, "special": False}}}
    return _file(directory, "tokenizer_config.json", json.dumps(config).encode())


REFUSED: dict[str, tuple[Callable[[Path], Path], type[ConvertError], str]] = {
    "empty model": (lambda p: _spm(p, lambda _: b"\x12\x00"), MalformedTokenizer, "holds no pieces"),
    "cut model": (lambda p: _spm(p, lambda raw: raw[:-3]), MalformedTokenizer, "not a SentencePiece model"),
    "text for a model": (lambda p: _spm(p, lambda _: b"hello"), MalformedTokenizer, "not a SentencePiece model"),
    "unigram": (lambda p: _spm(p, lambda raw: raw + b"\x12\x02\x18\x01"), MalformedTokenizer, "another kind than BPE"),
    "NaN score": (
        lambda p: _spm(p, lambda raw: raw + b"\x0a\x08\x0a\x01x\x15\x00\x00\xc0\x7f"),
        MalformedTokenizer,
        "score of 'x' is nan",
    ),
    "piece twice": (
        lambda p: _json_changed(p, lambda c: c["added_tokens"].append({"id": 1023, "content": "<bos>"})),
        MalformedTokenizer,
        "tokens 2 and 1023 have the same text '<bos>'",
    ),
    "byte missing": (
        lambda p: _json_changed(p, lambda c: c["model"]["vocab"].update({"other": c["model"]["vocab"].pop("<0x41>")})),
        MalformedTokenizer,
        "byte token <0x41> is missing",
    ),
    "gap in the ids": (
        lambda p: _json_changed(p, lambda c: c["model"]["vocab"].pop("<0x41>")),
        MalformedTokenizer,
        "there is no token with id",
    ),
    "id twice": (
        lambda p: _json_changed(p, lambda c: c["model"]["vocab"].update({"other": 5})),
        MalformedTokenizer,
        "is not a new id",
    ),
    "unigram json": (
        lambda p: _json_changed(p, lambda c: c["model"].update({"type": "Unigram"})),
        MalformedTokenizer,
        "BPE with byte fallback; this one is not",
    ),
    "no byte fallback": (
        lambda p: _json_changed(p, lambda c: c["model"].update({"byte_fallback": False})),
        MalformedTokenizer,
        "BPE with byte fallback",
    ),
    "merge of three": (
        lambda p: _json_changed(p, lambda c: c["model"]["merges"].append(["a", "b", "c"])),
        MalformedTokenizer,
        "is not a pair of pieces",
    ),
    "vocab a list": (
        lambda p: _json_changed(p, lambda c: c["model"].update({"vocab": []})),
        MalformedTokenizer,
        "model.vocab must be an object",
    ),
    "added token without id": (
        lambda p: _json_changed(p, lambda c: c["added_tokens"].append({"content": "x"})),
        MalformedTokenizer,
        "lacks its id or content",
    ),
    "more pieces than rows": (
        lambda p: _json_changed(p, lambda c: c["model"]["vocab"].update({"one more": 1024})),
        MalformedTokenizer,
        "1025 pieces, but the embedding has only 1024 rows",
    ),
    "added token without text": (lambda p: _decoder(p, "5", None), MalformedTokenizer, "an id with a content"),
    "added id no number": (lambda p: _decoder(p, "-1", "x"), MalformedTokenizer, "an id with a content"),
    "renamed byte": (lambda p: _decoder(p, "217", "other"), MalformedTokenizer, "<0x00> is missing"),
    "no bos": (lambda p: _decoder(p, "2", "other"), MalformedTokenizer, "there is no token '<bos>' for bos"),
    "old ids no numbers": (lambda p: _file(p, "added_tokens.json", b'{"x": "y"}'), MalformedTokenizer, "not a number"),
    "half a character": (
        lambda p: _json_changed(p, lambda c: c["model"]["vocab"].update({"\ud800": 1024})),
        MalformedJson,
        "surrogates not allowed",
    ),
    "template a number": (
        lambda p: _file(p, "tokenizer_config.json", b'{"chat_template": 3}'),
        MalformedTokenizer,
        "chat_template must be",
    ),
    "config no JSON": (lambda p: _file(p, "tokenizer_config.json", b"{"), MalformedJson, "not valid JSON"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_what_llama_cpp_would_die_of(case: str, tmp_path: Path) -> None:
    """A tokenizer that llama.cpp would abort on is refused in one line that names the file and the rule."""
    build, error, words = REFUSED[case]
    with pytest.raises(error, match=words) as caught:
        read_vocabulary(build(tmp_path / "model"), N_VOCAB)
    assert "\n" not in str(caught.value)


def test_every_cut_of_a_sentencepiece_model_is_survived(tmp_path: Path) -> None:
    """A SentencePiece model that is cut at any byte is read or refused."""
    content = (BASE / "tokenizer.model").read_bytes()
    path = tmp_path / "tokenizer.model"
    n_refused = 0
    for length in range(0, len(content), 97):
        path.write_bytes(content[:length])
        try:
            read_pieces(path)
        except MalformedTokenizer:
            n_refused += 1
    assert n_refused > 100
