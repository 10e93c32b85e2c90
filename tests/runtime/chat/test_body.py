"""Bodies of chat completions and completions to values."""

from typing import Any

import pytest

from runtime.adapters.blend import BlendTerm
from runtime.chat.body import CompletionInput, parse_completion, parse_messages, parse_prompt
from runtime.errors import InvalidRequest
from runtime.generation import Sampling
from runtime.prompt.gemma import Message

MINIMAL = {"model": "m", "messages": []}


def test_defaults() -> None:
    """What is not named, or null, has its default."""
    expected = CompletionInput("m", (), None, Sampling(), (), is_stream=False, includes_usage=False)
    assert parse_completion(MINIMAL) == expected
    nulls = dict.fromkeys(["stop", "temperature", "max_tokens", "stream", "stream_options", "n", "tools", "seed"])
    assert parse_completion(MINIMAL | nulls) == expected


def test_every_parameter_arrives() -> None:
    """Each has its place."""
    sampling: dict[str, Any] = {
        "temperature": 2,
        "top_p": 0.5,
        "top_k": 3,
        "seed": 42,
        "repetition_penalty": 1.5,
        "frequency_penalty": -2,
        "presence_penalty": 2,
    }
    rest = {
        "max_tokens": 5,
        "max_completion_tokens": 7.0,
        "stop": ["a", "b", "a"],
        "stream": True,
        "stream_options": {"include_usage": True},
        "lora": "pirate",
    }
    asked = parse_completion(MINIMAL | sampling | rest)
    assert asked == CompletionInput(
        "m", (BlendTerm("pirate"),), 7, Sampling(**sampling), ("a", "b"), is_stream=True, includes_usage=True
    )


def test_one_stop_may_stand_alone() -> None:
    """A string is as good as a list of one."""
    assert parse_completion(MINIMAL | {"stop": "END"}).stop == ("END",)


def test_any_64_bit_seed_is_a_seed() -> None:
    """Negative ones too; equal seeds stay equal."""
    assert parse_completion(MINIMAL | {"seed": -1}).sampling.seed == 2**63 - 1


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"n": 2}, "n is not served"),
        ({"n": True}, "n is not served"),
        ({"logprobs": True}, "logprobs is not served"),
        ({"logprobs": 1}, "logprobs is not served"),
        ({"top_logprobs": 3}, "top_logprobs is not served"),
        ({"tools": [{}]}, "tools is not served"),
        ({"response_format": {"type": "json_object"}}, "response_format is not served"),
        ({"logit_bias": {"1": 5}}, "logit_bias is not served"),
        ({"grammar": "x"}, "unknown parameter 'grammar'"),
        ({"max_tokens": -1}, "max_tokens must be at least 0"),
        ({"max_tokens": -1, "max_completion_tokens": 5}, "max_tokens must be at least 0"),
        ({"max_tokens": "5"}, "max_tokens must be a whole number"),
        ({"max_tokens": 1.5}, "max_tokens must be a whole number"),
        ({"max_tokens": True}, "max_tokens must be a whole number"),
        ({"temperature": 5.1}, "temperature must be a number between 0 and 5"),
        ({"temperature": float("inf")}, "temperature must be"),
        ({"temperature": "hot"}, "temperature must be"),
        ({"top_k": -1}, "top_k must be at least 0"),
        ({"stop": [""]}, "each stop"),
        ({"stop": ["x"] * 17}, "stop must be"),
        ({"stop": 5}, "stop must be"),
        ({"stop": {}}, "stop must be"),
        ({"stop": False}, "stop must be"),
        ({"stream": "true"}, "stream must be a boolean"),
        ({"stream_options": []}, "stream_options must be an object"),
        ({"stream_options": {"include_usage": 1}}, "include_usage must be a boolean"),
        ({"lora": 5}, "lora must be a string"),
        ({"model": 5}, "model must be a string"),
    ],
)
def test_refusals(fields: dict[str, Any], text: str) -> None:
    """Each names its parameter."""
    with pytest.raises(InvalidRequest, match=text):
        parse_completion(MINIMAL | fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1},
        {"logprobs": False},
        {"tools": [], "tool_choice": "auto"},
        {"response_format": {"type": "text"}},
        {"logit_bias": {}},
        {"user": "me", "metadata": {}, "store": False},
    ],
)
def test_parameters_that_ask_for_nothing(fields: dict[str, Any]) -> None:
    """They pass and change nothing."""
    assert parse_completion(MINIMAL | fields) == parse_completion(MINIMAL)


def test_unknown_parameters_pass_where_the_dialect_ignores_them() -> None:
    """Workers AI ignores what it does not know; what it knows and we lack is refused there too."""
    parse_completion(MINIMAL | {"whatever": 1}, is_strict=False)
    with pytest.raises(InvalidRequest, match="n is not served"):
        parse_completion(MINIMAL | {"n": 2}, is_strict=False)


def test_messages() -> None:
    """Parts are joined, developers are the system, an assistant may say nothing."""
    items = [
        {"role": "developer", "content": "d"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "x"},
        {"role": "assistant", "content": None},
    ]
    assert parse_messages({"messages": items}) == (
        Message("system", "d"),
        Message("user", "ab"),
        Message("assistant", ""),
    )


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        (None, "messages must be a list"),
        ([], "at least one"),
        ("hi", "messages must be a list"),
        (["hi"], r"messages\[0\] must be an object"),
        ([{"role": "tool", "content": "x"}], r"messages\[0\]\.role must be one of"),
        ([{"role": ["user"], "content": "x"}], r"messages\[0\]\.role"),
        ([{"role": "user", "content": None}], r"messages\[0\]\.content must be"),
        ([{"role": "user"}], r"messages\[0\]\.content must be"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], r"content\[0\] must be a part of type text"),
        ([{"role": "user", "content": ["x"]}], r"content\[0\] must be a part of type text"),
    ],
)
def test_unusable_messages(messages: Any, text: str) -> None:
    """Each says which message and what is wrong."""
    with pytest.raises(InvalidRequest, match=text):
        parse_messages({"messages": messages})


def test_prompt() -> None:
    """One string, alone or in a list."""
    assert parse_prompt({"prompt": "a"}) == parse_prompt({"prompt": ["a"]}) == "a"
    for prompt in (None, ["a", "b"], [1, 2], [[1]], 5):
        with pytest.raises(InvalidRequest, match="prompt must be one string"):
            parse_prompt({"prompt": prompt})
