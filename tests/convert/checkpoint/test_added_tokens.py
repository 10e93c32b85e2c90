"""Tokens that only some of a checkpoint's files know, renamed ones, and the tokenizer.json that transformers writes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llama_cpp import Llama

from convert.checkpoint.tokenizer import read_vocabulary
from convert.checkpoint.vocabulary import TokenType, Vocabulary
from convert.commands.arguments import main
from convert.conversion.conversion import Options, convert_model
from tests.convert.checkpoint.test_tokenizer import TOKENS, json_only
from tests.convert.checkpoints import checkpoint
from tests.tiny_gemma.files import BASE

N_VOCAB = 1024
TAB, START, END = 226, 106, 107
Change = Callable[[dict[str, Any]], object]
IM_START = {"id": 1024, "content": "<|im_start|>", "special": True}
IM_END = {"id": 1025, "content": "<|im_end|>", "special": False}


def _transformers_file(content: dict[str, Any]) -> None:
    """Write the tab as itself, and leave the turn tokens out of the added ones, as the real file of Gemma does."""
    vocab = content["model"]["vocab"]
    vocab["\t"] = vocab.pop("<0x09>")
    assert vocab["\t"] == TAB
    content["added_tokens"] = [one for one in content["added_tokens"] if one["id"] not in (START, END)]


def _with_json(directory: Path, change: Change) -> Path:
    content = json.loads((BASE / "tokenizer.json").read_text())
    change(content)
    (directory / "tokenizer.json").write_text(json.dumps(content))
    return directory


def _config(directory: Path, **changes: object) -> Path:
    config = json.loads((BASE / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps(config | changes))
    return directory


def _texts(vocabulary: Vocabulary, *ids: int) -> list[str]:
    return [vocabulary.pieces[token_id].text for token_id in ids]


def test_the_file_that_transformers_writes_tokenises_as_transformers(tmp_path: Path) -> None:
    """A literal tab for <0x09> and turn tokens in no list of added tokens give the ids of Hugging Face tokenizers."""
    path = tmp_path / "base.gguf"
    convert_model(_with_json(json_only(tmp_path / "model"), _transformers_file), path, Options("q8_0"))
    llama = Llama(str(path), vocab_only=True, verbose=False)
    try:
        assert llama.tokenize(b"\t", add_bos=False) == [TAB]
        assert llama.detokenize([TAB]) == b"\t"
        assert [
            (text, found)
            for text, _, expected in TOKENS
            if (found := llama.tokenize(text.encode(), add_bos=False, special=True)) != expected
        ] == []
    finally:
        llama.close()
    assert sum("\t" in text for text, *_ in TOKENS) > 10
    assert sum("<end_of_turn>" in text for text, *_ in TOKENS) > 5


def test_new_tokens_in_tokenizer_json_alone_keep_their_names(tmp_path: Path) -> None:
    """tokenizer.model copied beside the files of transformers 5 does not hide tokens that only tokenizer.json has."""
    directory = checkpoint(tmp_path / "model")
    _with_json(directory, lambda content: content["added_tokens"].extend([IM_START, IM_END]))
    vocabulary = read_vocabulary(directory, N_VOCAB + 2)
    assert _texts(vocabulary, 1024, 1025) == ["<|im_start|>", "<|im_end|>"]
    assert vocabulary.pieces[1024].type is TokenType.CONTROL
    assert vocabulary.pieces[1025].type is TokenType.USER_DEFINED
    assert vocabulary.warnings == ()


def test_files_that_disagree_are_named(tmp_path: Path) -> None:
    """Two files with another text for one id: the warning names both, and tokenizer.json decides."""
    directory = checkpoint(tmp_path / "model")
    _with_json(directory, lambda content: content["added_tokens"].append(IM_START))
    _config(directory, added_tokens_decoder={"1024": {"content": "<tool>", "special": True}})
    (directory / "added_tokens.json").write_text('{"<other>": 1024}')
    vocabulary = read_vocabulary(directory, N_VOCAB + 1)
    assert _texts(vocabulary, 1024) == ["<|im_start|>"]
    assert vocabulary.warnings == (
        "tokenizer.json calls token 1024 '<|im_start|>', but tokenizer_config.json '<tool>'; the first is used",
        "tokenizer.json calls token 1024 '<|im_start|>', but added_tokens.json '<other>'; the first is used",
    )


def test_another_vocabulary_in_tokenizer_json_is_used_and_said(tmp_path: Path) -> None:
    """Transformers reads tokenizer.json, so a stale tokenizer.model beside it loses."""
    directory = checkpoint(tmp_path / "model")

    def rename(content: dict[str, Any]) -> None:
        content["model"]["vocab"]["renamed"] = content["model"]["vocab"].pop("<unused7>")
        content["added_tokens"] = [one for one in content["added_tokens"] if one["content"] != "<unused7>"]

    _with_json(directory, rename)
    _config(directory, added_tokens_decoder={})
    vocabulary = read_vocabulary(directory, N_VOCAB)
    assert "renamed" in {piece.text for piece in vocabulary.pieces}
    assert "disagree about 1 tokens" in vocabulary.warnings[0]
    assert "tokenizer.json is used" in vocabulary.warnings[0]


def test_a_token_without_a_row_is_left_out(tmp_path: Path) -> None:
    """[PAD] added without resizing the embedding: the weights are good, and no prompt can hold that token."""
    directory = checkpoint(tmp_path / "model")
    decoder = {"1024": {"content": "[PAD]", "special": True}}
    _config(directory, added_tokens_decoder=decoder, pad_token="[PAD]")  # noqa: S106 - a token of text
    vocabulary = read_vocabulary(directory, N_VOCAB)
    assert len(vocabulary.pieces) == N_VOCAB
    assert vocabulary.special_ids["padding"] == 0
    assert vocabulary.warnings == (
        "added tokens have no row in the embedding of 1024 rows and are left out: '[PAD]' (1024)",
    )


def test_the_same_without_tokenizer_model(tmp_path: Path) -> None:
    """tokenizer.json alone with [PAD] beyond the rows is read as well."""
    directory = _with_json(
        json_only(tmp_path / "model"),
        lambda content: content["added_tokens"].append({"id": 1024, "content": "[PAD]", "special": True}),
    )
    assert len(read_vocabulary(directory, N_VOCAB).pieces) == N_VOCAB


def test_rows_without_a_token_are_said(tmp_path: Path) -> None:
    """A resized embedding without its tokenizer gets unused tokens, and a warning with their number."""
    vocabulary = read_vocabulary(checkpoint(tmp_path / "model"), N_VOCAB + 2)
    assert _texts(vocabulary, 1024, 1025) == ["[PAD1024]", "[PAD1025]"]
    assert "2 rows of the embedding have no token" in vocabulary.warnings[0]


@pytest.mark.parametrize("file_name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_tokens_listed_as_special_by_text_are_control_tokens(file_name: str, tmp_path: Path) -> None:
    """additional_special_tokens names tokens by text only; they are control tokens like those in a table by id."""
    directory = checkpoint(tmp_path / "model")
    usual = read_vocabulary(directory, N_VOCAB).pieces[169]
    assert usual.type is TokenType.USER_DEFINED
    (directory / file_name).write_text(json.dumps({"additional_special_tokens": [usual.text, "<not there>"]}))
    assert read_vocabulary(directory, N_VOCAB).pieces[169].type is TokenType.CONTROL


def test_renamed_turn_tokens_are_warned_of(tmp_path: Path) -> None:
    """Unsloth's map_eos_token renames the turn tokens in the files; chat in Gemma's template is not possible then."""
    directory = checkpoint(tmp_path / "model")
    decoder = {"106": {"content": "<|im_start|>", "special": True}, "107": {"content": "<|im_end|>", "special": True}}
    _config(directory, added_tokens_decoder=decoder, eos_token="<|im_end|>")  # noqa: S106 - a token of text
    vocabulary = read_vocabulary(directory, N_VOCAB)
    assert vocabulary.special_ids["eos"] == 107
    assert "the vocabulary has no <start_of_turn> and no <end_of_turn>: chat is refused" in vocabulary.warnings[0]


def test_another_chat_template_is_warned_of(tmp_path: Path) -> None:
    """A ChatML chat_template gives a warning, also where Gemma's turn tokens exist."""
    directory = _config(checkpoint(tmp_path / "model"), chat_template="{{ '<|im_start|>' + role }}")
    assert "chat_template is not Gemma's" in read_vocabulary(directory, N_VOCAB).warnings[0]


def test_a_broken_tokenizer_json_beside_a_sound_model_is_left(tmp_path: Path) -> None:
    """tokenizer.model is enough; the warning gives the reason why tokenizer.json was not used."""
    directory = checkpoint(tmp_path / "model")
    (directory / "tokenizer.json").write_text("<!doctype html>")
    vocabulary = read_vocabulary(directory, N_VOCAB)
    assert len(vocabulary.pieces) == N_VOCAB
    assert "only tokenizer.model is used" in vocabulary.warnings[0]


def test_warnings_reach_the_converters_user(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Convert model prints what it has to warn of before it writes."""
    directory = _config(checkpoint(tmp_path / "model"), chat_template="{{ '<|im_start|>' + role }}")
    shutil.copyfile(BASE / "tokenizer.json", directory / "tokenizer.json")
    assert main(["model", str(directory), "-o", str(tmp_path / "base.gguf"), "--type", "q8_0"]) == 0
    assert "warning: its chat_template is not Gemma's" in capsys.readouterr().err
