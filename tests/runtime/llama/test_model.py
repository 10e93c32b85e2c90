"""Text to tokens and back."""

from __future__ import annotations

from pathlib import Path

import llama_cpp.llama_cpp as native
import pytest

from runtime.errors import ModelLoadError
from runtime.generation import Prompt, Segment
from runtime.llama.library import Library
from runtime.llama.model import Model

BOS, EOS, END_OF_TURN = 2, 1, 107


def prompt(*segments: tuple[str, bool]) -> Prompt:
    """A prompt of texts, and whether their control tokens are tokens."""
    return Prompt(tuple(Segment(text, is_ours) for text, is_ours in segments))


def text_of(model: Model, tokens: list[int]) -> str:
    """The text of tokens, control tokens left out."""
    return b"".join(model.piece(token) for token in tokens).decode()


def test_bos_is_put_in_front_once(model: Model) -> None:
    """``<bos>`` is put in front of a prompt unless the prompt begins with it."""
    assert model.tokenize(prompt(("Hello", True)))[0] == BOS
    assert model.tokenize(prompt(("<bos>Hello", True))) == model.tokenize(prompt(("Hello", True)))
    assert model.tokenize(Prompt(())) == [BOS]


def test_a_users_control_tokens_are_text(model: Model) -> None:
    """``<end_of_turn>`` ends a turn in the template's segments, and is text in a user's."""
    ours = model.tokenize(prompt(("<end_of_turn>", True)))
    theirs = model.tokenize(prompt(("<end_of_turn>", False)))
    assert ours == [BOS, END_OF_TURN]
    assert END_OF_TURN not in theirs
    assert text_of(model, theirs) == "<end_of_turn>"
    assert model.tokenize(prompt(("<bos>", False)))[1:].count(BOS) == 0


def test_text_is_tokenised_across_segments(model: Model) -> None:
    """Text is tokenised as a whole where no control token stands between its segments."""
    whole = model.tokenize(prompt(("<start_of_turn>user\nWhat is the capital?<end_of_turn>\n", True)))
    parts = prompt(
        ("<start_of_turn>user\n", True), ("What is the cap", False), ("ital?", False), ("<end_of_turn>\n", True)
    )
    assert model.tokenize(parts) == whole


@pytest.mark.parametrize("text", ["naïve café", "🐈 and 日本", " two  spaces ", "\n\n\n", "a\x00b", "x" * 5000])
def test_pieces_give_the_text_back(model: Model, text: str) -> None:
    """The pieces of any text's tokens give the text back; unknown characters are written as bytes."""
    assert text_of(model, model.tokenize(prompt((text, False)))) == text


def test_the_ends_of_an_answer(model: Model) -> None:
    """End of turn and end of text end an answer, and have no text."""
    assert model.is_end(END_OF_TURN)
    assert model.is_end(EOS)
    assert not model.is_end(BOS)
    assert model.piece(END_OF_TURN) == model.piece(EOS) == b""


def test_loading_can_be_stopped(library: Library, tiny_model_f32: Path) -> None:
    """The function that gets the progress can stop the loading."""
    with pytest.raises(ModelLoadError, match="cannot load"):
        Model(library, tiny_model_f32, on_progress=lambda _: False)


def test_progress_ends_at_one(library: Library, tiny_model_f32: Path) -> None:
    """The progress of loading never goes back, and ends at 1."""
    told: list[float] = []
    Model(library, tiny_model_f32, on_progress=lambda fraction: told.append(fraction) or True).free()
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_only_quantised_weights_are_repacked(library: Library, tiny_model: Path, tiny_model_f32: Path) -> None:
    """llama.cpp repacks Q4_K for processors with AVX2, and says so in its log."""
    plain = Model(library, tiny_model_f32, on_progress=lambda _: True)
    quantised = Model(library, tiny_model, on_progress=lambda _: True)
    assert not plain.is_repacked
    if b"AVX2 = 1" in native.llama_print_system_info():
        assert quantised.is_repacked
    plain.free()
    quantised.free()
