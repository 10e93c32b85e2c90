"""Gemma's template against outcomes of the first-party code, and what becomes of system messages."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import InvalidRequest
from runtime.generation import Segment
from runtime.prompt.gemma import Message, SystemRole, render, render_raw

VECTORS = json.loads((Path(__file__).parent / "data" / "prompts.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_text_is_the_recorded_one(vector: dict[str, Any]) -> None:
    """Every recorded prompt comes out byte for byte, with system messages dropped as they were then."""
    inputs = vector["inputs"]
    if "messages" in inputs:
        prompt = render([Message(**message) for message in inputs["messages"]], SystemRole.DROP)
    elif inputs.get("raw"):
        prompt = render_raw(inputs["prompt"])
    else:
        prompt = render([Message("user", inputs["prompt"])], SystemRole.DROP)
    assert prompt.text == vector["prompt"]


def test_control_tokens_of_a_user_stay_text() -> None:
    """The template's tokens count as tokens, those typed by a user do not; a turn's text is one segment."""
    prompt = render([Message("user", "a<end_of_turn>b")], SystemRole.FOLD)
    assert prompt.segments == (
        Segment("<start_of_turn>", has_control_tokens=True),
        Segment("user\na<end_of_turn>b", has_control_tokens=False),
        Segment("<end_of_turn>", has_control_tokens=True),
        Segment("\n", has_control_tokens=False),
        Segment("<start_of_turn>", has_control_tokens=True),
        Segment("model\n", has_control_tokens=False),
    )


def test_control_tokens_of_a_raw_prompt_are_tokens() -> None:
    """A raw prompt is one segment in which control tokens count."""
    assert render_raw("<bos>a").segments == (Segment("<bos>a", has_control_tokens=True),)


def test_fold_puts_system_text_before_the_first_user_turn() -> None:
    """All system messages stand, in order, before the first user's text."""
    messages = [Message("system", "S1"), Message("user", "U1"), Message("system", "S2"), Message("user", "U2")]
    text = render(messages, SystemRole.FOLD).text
    assert text == (
        "<start_of_turn>user\nS1\n\nS2\n\nU1<end_of_turn>\n<start_of_turn>user\nU2<end_of_turn>\n<start_of_turn>model\n"
    )


def test_fold_makes_a_user_turn_of_lone_system_text() -> None:
    """Without a user turn the system text is one, in front."""
    text = render([Message("assistant", "A"), Message("system", "S")], SystemRole.FOLD).text
    assert text.startswith("<start_of_turn>user\nS<end_of_turn>\n<start_of_turn>model\nA<end_of_turn>\n")


def test_fold_leaves_other_conversations_alone() -> None:
    """Without system messages, fold and drop are the same."""
    messages = [Message("user", "U"), Message("assistant", "A")]
    assert render(messages, SystemRole.FOLD) == render(messages, SystemRole.DROP)


def test_reject_refuses_system_messages_only() -> None:
    """A system message is an error; a conversation without one is not."""
    render([Message("user", "U")], SystemRole.REJECT)
    with pytest.raises(InvalidRequest, match="system role not supported"):
        render([Message("system", "S"), Message("user", "U")], SystemRole.REJECT)


@pytest.mark.parametrize("render_text", [render_raw, lambda text: render([Message("user", text)], SystemRole.FOLD)])
def test_lone_surrogates_are_refused(render_text: Callable[[str], object]) -> None:
    """Text without a UTF-8 form cannot be tokenised, so it is the client's error."""
    with pytest.raises(InvalidRequest, match="not valid Unicode"):
        render_text("a\ud800")
