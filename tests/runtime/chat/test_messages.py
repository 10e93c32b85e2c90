"""The messages of a chat to turns of a conversation."""

from typing import Any

import pytest

from runtime.chat.messages import MAX_MESSAGES, parse_messages
from runtime.errors import InvalidParameter
from runtime.prompt.gemma import Message


def test_messages() -> None:
    """Text parts are joined with line breaks, developers count as the system, an assistant may say nothing."""
    items = [
        {"role": "developer", "content": "d"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "x"},
        {"role": "assistant", "content": None},
    ]
    assert parse_messages(items) == (Message("system", "d"), Message("user", "a\nb"), Message("assistant", ""))


def test_a_history_with_tools() -> None:
    """Calls of tools are the model's text, and their results are turns of the user."""
    call = {"id": "1", "type": "function", "function": {"name": "clock", "arguments": '{"zone": "é"}'}}
    items = [
        {"role": "user", "content": "What time is it?"},
        {"role": "assistant", "content": None, "tool_calls": [call, call]},
        {"role": "tool", "tool_call_id": "1", "content": "noon"},
        {"role": "assistant", "content": "Noon.", "function_call": {"name": "f", "arguments": "not JSON"}},
        {"role": "function", "name": "f", "content": None},
    ]
    clock = '{"name": "clock", "arguments": {"zone": "é"}}'
    assert parse_messages(items) == (
        Message("user", "What time is it?"),
        Message("assistant", f"{clock}\n{clock}"),
        Message("user", "noon"),
        Message("assistant", 'Noon.\n{"name": "f", "arguments": "not JSON"}'),
        Message("user", ""),
    )


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        (None, "messages must be a list"),
        ([], "at least one"),
        ("hi", "messages must be a list"),
        ([{"role": "user", "content": ""}] * (MAX_MESSAGES + 1), "10000 messages at most"),
        (["hi"], r"messages\[0\] must be an object"),
        ([{"role": "robot", "content": "x"}], r"messages\[0\]\.role must be one of"),
        ([{"role": ["user"], "content": "x"}], r"messages\[0\]\.role"),
        ([{"role": "user", "content": None}], r"messages\[0\]\.content must be"),
        ([{"role": "user"}], r"messages\[0\]\.content must be"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], r"content\[0\] must be a part of type text"),
        ([{"role": "user", "content": ["x"]}], r"content\[0\] must be a part of type text"),
        ([{"role": "assistant", "content": "", "tool_calls": {}}, 1], r"messages\[1\] must be"),
        ([{"role": "assistant", "content": "", "tool_calls": 5}], r"tool_calls must be a list"),
        ([{"role": "assistant", "content": "", "tool_calls": [5]}], r"tool_calls must hold functions"),
    ],
)
def test_unusable_messages(messages: Any, text: str) -> None:
    """Each refusal says which message and what is wrong."""
    with pytest.raises(InvalidParameter, match=text):
        parse_messages(messages)
