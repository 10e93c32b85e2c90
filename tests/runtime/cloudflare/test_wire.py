"""Bodies to values, values to bytes; bytes are compared with bytes."""

import json
from typing import Any

import pytest

from runtime.adapters.blend import BlendTerm
from runtime.cloudflare.wire import RunFrames, parse_run, random_padding, render_envelope, render_result
from runtime.errors import InvalidRequest, MissingBody
from runtime.generation import FinishReason, Sampling, Usage
from runtime.prompt.gemma import Message
from runtime.web.streams import TextEnd, TextPiece


def test_prompt_with_defaults() -> None:
    """What is not named has the schema's default, and temperature the later schema's."""
    run_input = parse_run(b'{"prompt":"hi"}')
    assert run_input.prompt == "hi"
    assert run_input.messages is None
    assert (run_input.is_raw, run_input.is_stream, run_input.lora, run_input.max_tokens) == (False, False, (), 256)
    assert run_input.sampling == Sampling(temperature=0.6)


def test_every_sampling_parameter_arrives() -> None:
    """Each parameter of the schema has its place in Sampling."""
    values: dict[str, Any] = {
        "temperature": 5,
        "top_p": 0.5,
        "top_k": 50,
        "seed": 9999999999,
        "repetition_penalty": 1.5,
        "frequency_penalty": 0.25,
        "presence_penalty": 2,
    }
    for body in ({"prompt": "hi"}, {"messages": [{"role": "user", "content": "hi"}]}):
        assert parse_run(json.dumps(body | values).encode()).sampling == Sampling(**values)


def test_messages() -> None:
    """Messages arrive in order, and ``raw`` beside them says nothing, whatever its type."""
    run_input = parse_run(b'{"messages":[{"role":"user","content":"a"},{"role":"x","content":""}],"raw":"true"}')
    assert run_input.messages == (Message("user", "a"), Message("x", ""))
    assert run_input.prompt is None
    assert not run_input.is_raw


@pytest.mark.parametrize(("raw", "is_raw"), [("true", True), ("false", False), (True, True), (False, False)])
def test_raw_may_be_written_as_text(raw: object, is_raw: bool) -> None:
    """The model's page writes ``"raw": "true"``."""
    assert parse_run(json.dumps({"prompt": "hi", "raw": raw}).encode()).is_raw is is_raw


@pytest.mark.parametrize("raw", ["True", "", 1, None, ["true"]])
def test_raw_of_any_other_kind_is_refused(raw: object) -> None:
    """``raw`` is a boolean or one of the two words; anything else is refused."""
    with pytest.raises(InvalidRequest, match="Type mismatch of '/raw'"):
        parse_run(json.dumps({"prompt": "hi", "raw": raw}).encode())


@pytest.mark.parametrize(("given", "meant"), [(0, 0), (-1, 0), (7, 7), (7.0, 7), (10**30, 2**31 - 1)])
def test_max_tokens_is_clamped(given: float, meant: int) -> None:
    """The schema has no minimum, so a negative ``max_tokens`` counts as 0; the most is 2**31 - 1."""
    assert parse_run(json.dumps({"prompt": "hi", "max_tokens": given}).encode()).max_tokens == meant


def test_lora_of_the_body_goes_before_that_of_the_url() -> None:
    """The URL's adapter is used where the body names none, or an empty one."""
    assert parse_run(b'{"prompt":"hi","lora":"a"}', query_lora="b").lora == (BlendTerm("a"),)
    assert parse_run(b'{"prompt":"hi","lora":""}', query_lora="b").lora == (BlendTerm("b"),)
    assert parse_run(b'{"messages":[],"lora":null}', query_lora="b").lora == (BlendTerm("b"),)


@pytest.mark.parametrize("rest", ['"prompt":"hi"', '"messages":[]'])
def test_a_list_of_adapters_is_read_beside_a_prompt_and_beside_messages(rest: str) -> None:
    """The schema knows a string alone; the list is an addition, and an item that breaks its rules is refused."""
    run_input = parse_run(f'{{{rest},"lora":[{{"name":"a","scale":0.5}},{{"id":"b"}}]}}'.encode())
    assert run_input.lora == (BlendTerm("a", 0.5), BlendTerm("b"))
    with pytest.raises(InvalidRequest, match="each item of lora"):
        parse_run(f'{{{rest},"lora":["a"]}}'.encode())


@pytest.mark.parametrize("rest", ['"prompt":"hi"', '"messages":[]'])
def test_the_draft_length_is_an_addition_to_the_schema(rest: str) -> None:
    """llama-server's key for the most drafted tokens counts beside a prompt and beside messages."""
    assert parse_run(f"{{{rest}}}".encode()).n_draft_max is None
    assert parse_run(f'{{{rest},"speculative.n_max":null}}'.encode()).n_draft_max is None
    assert parse_run(f'{{{rest},"speculative.n_max":0}}'.encode()).n_draft_max == 0
    with pytest.raises(InvalidRequest, match=r"^speculative\.n_max must be a whole number$"):
        parse_run(f'{{{rest},"speculative.n_max":"0"}}'.encode())


def test_lora_beside_messages_must_be_text() -> None:
    """The messages branch of the schema does not know ``lora``; it is checked all the same, in the same words."""
    with pytest.raises(InvalidRequest) as caught:
        parse_run(b'{"messages":[],"lora":5}')
    assert (
        str(caught.value)
        == "oneOf at '/' not met, 0 matches: Type mismatch of '/lora', 'string' not in 'number','integer'"
    )


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"{", "not JSON"),
        (b'{"prompt":NaN}', "not JSON"),
        (b'{"prompt":"\xff"}', "not UTF-8 at byte 11"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"prompt":"hi"} x', "not JSON"),
    ],
)
def test_malformed_bodies(body: bytes, text: str) -> None:
    """The error for a body that is not JSON says where it breaks."""
    with pytest.raises(InvalidRequest, match=text):
        parse_run(body)


def test_no_body() -> None:
    """An empty body has its own error."""
    with pytest.raises(MissingBody):
        parse_run(b" \n")


def test_numbers_of_any_length() -> None:
    """A number of 5,000 digits is infinite, as in JavaScript, and out of range."""
    with pytest.raises(InvalidRequest, match="'/temperature' must be <= 5"):
        parse_run(b'{"prompt":"hi","temperature":' + b"9" * 5000 + b"}")


def test_envelope() -> None:
    """The success envelope, byte for byte; characters are not escaped."""
    assert (
        render_envelope(render_result("Hé", Usage(7, 5)))
        == (
            '{"result":{"response":"Hé","usage":{"prompt_tokens":7,"completion_tokens":5,"total_tokens":12}},'
            '"success":true,"errors":[],"messages":[]}'
        ).encode()
    )


def test_frames() -> None:
    """The stream, byte for byte: padding only where there is some, usage before ``[DONE]``."""
    paddings = iter(["abc", ""])
    frames = RunFrames(lambda: next(paddings))
    assert frames.start() == b""
    assert frames.text(TextPiece(0, " is")) == b'data: {"response":" is","p":"abc"}\n\n'
    assert frames.text(TextPiece(0, "\n")) == b'data: {"response":"\\n"}\n\n'
    assert frames.end(TextEnd(0, FinishReason.STOP, Usage(24, 17))) == (
        b'data: {"response":"","usage":{"prompt_tokens":24,"completion_tokens":17,"total_tokens":41}}\n\n'
    )
    assert frames.close(Usage(24, 17)) == b"data: [DONE]\n\n"
    assert frames.error(ValueError("secret")) == (
        b'data: {"errors":[{"message":"AiError: Internal server error","code":3043}],"success":false}\n\n'
    )


def test_padding_is_a_prefix_of_the_repeated_alphabet() -> None:
    """The padding has between 0 and 47 letters, and not always the same number."""
    alphabet = "abcdefghijklmnopqrstuvwxyz0123456789"
    paddings = {random_padding() for _ in range(500)}
    assert all((alphabet * 2).startswith(padding) and len(padding) <= 47 for padding in paddings)
    assert len(paddings) > 20
