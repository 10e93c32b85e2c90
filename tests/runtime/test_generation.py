"""Values that describe a request are valid once built."""

from __future__ import annotations

import math
from typing import Any

import pytest

from runtime.generation import BASE, Blend, BlendMember, GenerationRequest, Prompt, Sampling, Segment, Usage

A, B = "a" * 64, "b" * 64
PROMPT = Prompt((Segment("hello", has_control_tokens=False),))


def test_a_blend_does_not_depend_on_order() -> None:
    """Blends with equal sets of adapters and scales are equal in any order."""
    one, other = BlendMember(A, 0.5), BlendMember(B)
    assert Blend((one, other)) == Blend((other, one))
    assert hash(Blend((one, other))) == hash(Blend((other, one)))


def test_a_scale_is_part_of_the_key() -> None:
    """The same adapter with another scale is another blend."""
    assert Blend((BlendMember(A, 0.5),)) != Blend((BlendMember(A, 1.0),))


def test_no_members_is_the_base_model() -> None:
    """A blend is the base model exactly if it is empty."""
    assert BASE.is_base
    assert not Blend((BlendMember(A),)).is_base


def test_an_adapter_stands_once_in_a_blend() -> None:
    """A blend that names an adapter twice is refused for any scales."""
    with pytest.raises(ValueError, match="only once"):
        Blend((BlendMember(A, 1), BlendMember(A, 2)))


@pytest.mark.parametrize(
    ("digest", "scale"), [("", 1), ("A" * 64, 1), ("a" * 63, 1), (A, math.nan), (A, math.inf), (A, 1e30)]
)
def test_members_are_checked(digest: str, scale: float) -> None:
    """A member's digest must have the form of a digest, and its scale must be finite and in range."""
    with pytest.raises(ValueError, match="must be"):
        BlendMember(digest, scale)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 5.1),
        ("temperature", math.nan),
        ("top_p", 2.1),
        ("top_k", -1),
        ("repetition_penalty", math.inf),
        ("frequency_penalty", 2.5),
        ("presence_penalty", -2.5),
        ("seed", -1),
        ("seed", 2**63),
    ],
)
def test_sampling_is_checked(field: str, value: Any) -> None:
    """A sampling parameter out of range is refused, and the message names its range."""
    with pytest.raises(ValueError, match=f"{field} must be between"):
        Sampling(**{field: value})


def test_temperature_zero_is_greedy() -> None:
    """Temperature 0 is greedy, and no other value."""
    assert Sampling(temperature=0).is_greedy
    assert not Sampling(temperature=0.01).is_greedy


def test_requests_are_checked() -> None:
    """Counts and stop strings out of range are refused."""
    with pytest.raises(ValueError, match="max_tokens"):
        GenerationRequest("r", PROMPT, max_tokens=-1)
    with pytest.raises(ValueError, match="stop string"):
        GenerationRequest("r", PROMPT, stop=("",))


def test_a_lone_surrogate_is_no_text() -> None:
    """Text without a UTF-8 form is refused before it reaches the tokeniser."""
    with pytest.raises(ValueError, match="not valid Unicode at character 1"):
        Segment("a\ud800", has_control_tokens=False)


def test_a_prompt_is_its_segments_in_order() -> None:
    """The text of a prompt is the text of its segments, joined without a separator."""
    segments = (Segment("a", has_control_tokens=True), Segment("b", has_control_tokens=False))
    assert Prompt(segments).text == "ab"


def test_usage_adds_up() -> None:
    """The total is prompt plus completion; cached tokens are part of the prompt."""
    assert Usage(7, 5, 3).n_total_tokens == 12
