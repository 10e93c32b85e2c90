"""The body of a response to values."""

from typing import Any

import pytest

from runtime.errors import InvalidParameter, UnknownParameter, UnsupportedParameter
from runtime.generation import Grammar, GrammarKind, Sampling
from runtime.openai.responses.body import parse_response
from runtime.prompt.gemma import Message

MINIMAL = {"model": "m", "input": "hi"}


def test_a_text_is_a_users_message() -> None:
    """The smallest body, a model and a text, is one message of the user with all defaults."""
    asked = parse_response(MINIMAL)
    assert asked.messages == (Message("user", "hi"),)
    assert (asked.max_tokens, asked.sampling, asked.n_logprobs, asked.is_stream) == (None, Sampling(), None, False)


def test_items() -> None:
    """Messages in each form, calls of tools and their results; reasoning is left out."""
    items = [
        {"role": "developer", "content": "d"},
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        {"type": "reasoning", "summary": []},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "c", "annotations": []}]},
        {"type": "function_call", "name": "f", "arguments": '{"x": 1}', "call_id": "1"},
        {"type": "function_call_output", "call_id": "1", "output": "two"},
    ]
    assert parse_response(MINIMAL | {"input": items, "instructions": "Be brief."}).messages == (
        Message("system", "Be brief."),
        Message("system", "d"),
        Message("user", "a\nb"),
        Message("assistant", "c"),
        Message("assistant", '{"name": "f", "arguments": {"x": 1}}'),
        Message("user", "two"),
    )


def test_every_parameter_arrives() -> None:
    """Structured output lies one step higher than in chats."""
    form = {"type": "json_schema", "name": "x", "schema": {"type": "integer"}, "strict": True}
    body = {
        "max_output_tokens": 9,
        "temperature": 1,
        "text": {"format": form},
        "include": ["message.output_text.logprobs"],
        "stream": True,
        "store": True,
        "truncation": "auto",
    }
    asked = parse_response(MINIMAL | body)
    assert asked.sampling == Sampling(temperature=1, grammar=Grammar(GrammarKind.JSON_SCHEMA, '{"type":"integer"}'))
    assert (asked.max_tokens, asked.n_logprobs, asked.is_stream, asked.ignored) == (9, 0, True, ("store", "truncation"))
    assert asked.echoed["text"] == {"format": form}
    assert parse_response(MINIMAL | {"top_logprobs": 3}).n_logprobs == 3


@pytest.mark.parametrize(
    ("fields", "kind", "param"),
    [
        ({"previous_response_id": "resp_1"}, UnsupportedParameter, "previous_response_id"),
        ({"conversation": "conv_1"}, UnsupportedParameter, "conversation"),
        ({"prompt": {"id": "p"}}, UnsupportedParameter, "prompt"),
        ({"background": True}, UnsupportedParameter, "background"),
        ({"tool_choice": "required"}, UnsupportedParameter, "tool_choice"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, UnsupportedParameter, "input[0]"),
        ({"whatever": 1}, UnknownParameter, "whatever"),
        ({"input": None}, InvalidParameter, "input"),
        ({"input": []}, InvalidParameter, "input"),
        ({"input": [5]}, InvalidParameter, "input[0]"),
        ({"input": [{"role": "robot", "content": ""}]}, InvalidParameter, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, InvalidParameter, "input[0].content[0]"),
        ({"text": {"format": {"type": "yaml"}}}, InvalidParameter, "text.format"),
        ({"text": 5}, InvalidParameter, "text"),
        ({"max_output_tokens": "5"}, InvalidParameter, "max_output_tokens"),
    ],
)
def test_refusals(fields: dict[str, Any], kind: type[InvalidParameter], param: str) -> None:
    """What would need a store is refused by name, and so is every wrong value."""
    with pytest.raises(kind) as caught:
        parse_response(MINIMAL | fields)
    assert caught.value.param == param
