"""The prompts of plain completions."""

from typing import Any

import pytest

from runtime.chat.prompts import parse_prompts
from runtime.errors import InvalidParameter
from runtime.generation import Prompt, Segment

A = Prompt((Segment("a", has_control_tokens=True),))
B = Prompt((Segment("b", has_control_tokens=True),))


@pytest.mark.parametrize(
    ("value", "prompts"),
    [
        ("a", (A,)),
        (["a"], (A,)),
        (["a", "b"], (A, B)),
        ([1, 2], (Prompt((), tokens=(1, 2)),)),
        ([[1, 2], [3]], (Prompt((), tokens=(1, 2)), Prompt((), tokens=(3,)))),
        (["a", [3]], (A, Prompt((), tokens=(3,)))),
    ],
)
def test_prompts(value: Any, prompts: tuple[Prompt, ...]) -> None:
    """A prompt is one text or several, or the token ids of one prompt or of several."""
    assert parse_prompts({"prompt": value}) == prompts


@pytest.mark.parametrize(
    "value", [None, [], 5, {}, [None], [[]], [1, "a"], [True], [[1, "a"]], [-1], [2**31], ["a"] * 129, "\ud800"]
)
def test_unusable_prompts(value: Any) -> None:
    """Anything else is refused, as the parameter ``prompt``."""
    with pytest.raises(InvalidParameter) as caught:
        parse_prompts({"prompt": value})
    assert caught.value.param == "prompt"
