"""OpenAI's objects and chunks, byte for byte."""

import pytest

from runtime import errors
from runtime.generation import FinishReason, Usage
from runtime.openai.errors import render_error
from runtime.openai.wire import ChatFrames, Head, TextFrames, render_chat, render_models, render_text

HEAD = Head("chatcmpl-1", 1700000000, "gemma-7b-it-lora")
USAGE = Usage(7, 2, 3)
USAGE_BYTES = (
    b'"usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9,"prompt_tokens_details":{"cached_tokens":3}}'
)
CHUNK = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"gemma-7b-it-lora",'
    b'"choices":['
)
TEXT = (
    b'data: {"id":"chatcmpl-1","object":"text_completion","created":1700000000,"model":"gemma-7b-it-lora","choices":['
)


def test_chat() -> None:
    """A whole chat completion."""
    assert (
        render_chat(HEAD, "Hé", FinishReason.LENGTH, USAGE)
        == (
            '{"id":"chatcmpl-1","object":"chat.completion","created":1700000000,"model":"gemma-7b-it-lora","choices":[{'
            '"index":0,"message":{"role":"assistant","content":"Hé","refusal":null},"logprobs":null,'
            '"finish_reason":"length"}],'
        ).encode()
        + USAGE_BYTES
        + b"}"
    )


def test_text() -> None:
    """A whole plain completion."""
    assert render_text(HEAD, "x", FinishReason.STOP, USAGE) == (
        b'{"id":"chatcmpl-1","object":"text_completion","created":1700000000,"model":"gemma-7b-it-lora","choices":[{'
        b'"index":0,"text":"x","logprobs":null,"finish_reason":"stop"}],' + USAGE_BYTES + b"}"
    )


def test_chat_stream() -> None:
    """The role comes once, before the first piece; usage only where it was asked for."""
    frames = ChatFrames(HEAD, includes_usage=True)
    role = CHUNK + b'{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}\n\n'
    assert frames.text("a") == role + (
        CHUNK + b'{"index":0,"delta":{"content":"a"},"logprobs":null,"finish_reason":null}]}\n\n'
    )
    assert frames.text("b") == CHUNK + b'{"index":0,"delta":{"content":"b"},"logprobs":null,"finish_reason":null}]}\n\n'
    end = CHUNK + b'{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}]}\n\n'
    assert frames.end(FinishReason.STOP, USAGE) == end + CHUNK + b"]," + USAGE_BYTES + b"}\n\ndata: [DONE]\n\n"
    silent = ChatFrames(HEAD, includes_usage=False)
    assert silent.end(FinishReason.STOP, USAGE) == role + end + b"data: [DONE]\n\n"


def test_text_stream() -> None:
    """Pieces, why it ended, the end."""
    frames = TextFrames(HEAD, includes_usage=False)
    assert frames.text("a") == TEXT + b'{"index":0,"text":"a","logprobs":null,"finish_reason":null}]}\n\n'
    assert frames.end(FinishReason.LENGTH, USAGE) == (
        TEXT + b'{"index":0,"text":"","logprobs":null,"finish_reason":"length"}]}\n\ndata: [DONE]\n\n'
    )
    assert TextFrames(HEAD, includes_usage=True).end(FinishReason.STOP, USAGE).count(USAGE_BYTES) == 1


def test_a_broken_stream_says_why() -> None:
    """The error is an event of its own; a bug's words stay with us."""
    assert ChatFrames(HEAD, includes_usage=False).error(errors.EngineDied("killed")) == (
        b'data: {"error":{"message":"killed","type":"server_error","param":null,"code":null}}\n\n'
    )
    assert b"secret" not in TextFrames(HEAD, includes_usage=False).error(ValueError("secret"))


def test_models() -> None:
    """The list of models."""
    assert render_models([("m", 5)]) == (
        b'{"object":"list","data":[{"id":"m","object":"model","created":5,"owned_by":"gemlane"}]}'
    )


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.InvalidRequest("x"), 400, None),
        (errors.MissingBody("x"), 400, None),
        (errors.RequestTooLarge("x"), 413, "request_too_large"),
        (errors.ContextExceeded("x"), 400, "context_length_exceeded"),
        (errors.UnknownRoute("x"), 404, "unknown_url"),
        (errors.MethodNotAllowed("x", "PUT"), 405, "method_not_supported"),
        (errors.UnknownModel("x", "m"), 404, "model_not_found"),
        (errors.UnknownAdapter("x", "a"), 404, "model_not_found"),
        (errors.IncompleteAdapter("x"), 400, "adapter_unusable"),
        (errors.IncompatibleAdapter("x"), 400, "adapter_unusable"),
        (errors.InvalidAdapter("x"), 400, "adapter_unusable"),
        (errors.Unauthorized("x"), 401, "invalid_api_key"),
        (errors.MissingCredentials("x"), 401, "invalid_api_key"),
        (errors.MalformedCredentials("x"), 401, "invalid_api_key"),
        (errors.ForeignOrigin("x"), 403, "foreign_origin"),
        (errors.Overloaded("x"), 429, "rate_limit_exceeded"),
        (errors.RequestTimeout("x"), 408, "request_timeout"),
        (errors.EngineUnavailable("x"), 503, "engine_unavailable"),
        (errors.EngineDied("x"), 500, None),
        (errors.DecodeError("x"), 500, None),
        (ZeroDivisionError("secret"), 500, None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_error_rows(error: Exception, status: int, code: str | None) -> None:
    """A class has its status and code; an error that is not ours tells nothing of itself."""
    fault, body = render_error(error)
    assert (fault.status, fault.code) == (status, code)
    assert b"secret" not in body
