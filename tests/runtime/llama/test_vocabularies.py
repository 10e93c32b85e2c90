"""Base models whose vocabulary other converters wrote: the same tokens as SentencePiece, or chat refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runtime.errors import InvalidRequest
from runtime.llama.library import Library
from runtime.prompt.gemma import Message, SystemRole, render, render_raw
from tests.convert.plans import Change, drop, token, token_type, write_base
from tests.runtime.llama.conftest import load
from tests.runtime.llama.test_model import text_of

REFERENCE = Path(__file__).parents[2] / "convert" / "reference_logits.npz"
"""Holds the tokens that SentencePiece makes of `TEXT`, `<bos>` in front."""
TEXT = "<start_of_turn>user\nWhat is the capital of France?<end_of_turn>\n<start_of_turn>model\nArr, the"
CHAT = render([Message("user", "What is the capital of France?")], SystemRole.FOLD)
NORMAL = 1
OLD_FILES: dict[str, tuple[Change, ...]] = {
    "no space key": (drop("tokenizer.ggml.add_space_prefix"),),
    "turn tokens NORMAL": (token_type(NORMAL, 106, 107),),
    "turn tokens NORMAL, no eot": (token_type(NORMAL, 106, 107), drop("tokenizer.ggml.eot_token_id")),
    "both": (drop("tokenizer.ggml.add_space_prefix"), token_type(NORMAL, 106, 107)),
}


@pytest.mark.parametrize("case", OLD_FILES)
def test_files_of_spring_2024_tokenise_as_sentencepiece(case: str, library: Library, tmp_path: Path) -> None:
    """Turn tokens are known by their text, no space is put in front, and the end of a turn ends an answer."""
    model = load(library, write_base(tmp_path / "old.gguf", *OLD_FILES[case]))
    with np.load(REFERENCE) as reference:
        expected = reference["tokens"].tolist()
    assert model.tokenize(render_raw(TEXT)) == expected
    assert expected[: len(model.tokenize(CHAT))] == model.tokenize(CHAT)
    assert model.is_end(107)
    assert model.piece(106) == model.piece(107) == b""
    model.free()


def test_chat_is_refused_where_the_turn_tokens_were_renamed(library: Library, tmp_path: Path) -> None:
    """Unsloth's map_eos_token leaves no token of Gemma's turns: chat is refused by name, and raw prompts go on."""
    renamed = (token(106, b"<|im_start|>"), token(107, b"<|im_end|>"))
    model = load(library, write_base(tmp_path / "renamed.gguf", *renamed))
    with pytest.raises(InvalidRequest, match=r"vocabulary has no <start_of_turn>, <end_of_turn>; send a raw prompt"):
        model.tokenize(CHAT)
    raw = model.tokenize(render_raw("<|im_start|>user\nHello<|im_end|>"))
    assert raw[:2] == [2, 106]
    assert raw[-1] == 107
    assert text_of(model, raw) == "user\nHello"
    model.free()
