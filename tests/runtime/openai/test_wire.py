"""OpenAI's objects and chunks, byte for byte."""

import json
from dataclasses import replace

import pytest

from runtime import errors
from runtime.generation import FinishReason, Usage
from runtime.messages import Alternative, TokenScore
from runtime.openai.errors import render_error
from runtime.openai.wire import ChatFrames, Head, ModelEntry, TextFrames, render_chat, render_models, render_text
from runtime.web.streams import Answer, TextEnd, TextPiece

HEAD = Head("chatcmpl-1", 1700000000, "gemma-7b-it-lora")
SCORED = replace(HEAD, has_logprobs=True)
USAGE = Usage(7, 2, 3, 5, 1)
SCORE = TokenScore(b"H", -0.5, (Alternative(b"H", -0.5), Alternative("é".encode(), -1.5)))
HALF = TokenScore("é".encode()[:1], -2.0)
END = TokenScore(b"<end_of_turn>", -4.0)
USAGE_BYTES = (
    b'"usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9,"prompt_tokens_details":{"cached_tokens":3},'
    b'"completion_tokens_details":{"accepted_prediction_tokens":1,"rejected_prediction_tokens":4}}'
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
        render_chat(HEAD, [Answer("Hé", FinishReason.LENGTH, USAGE)])
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
    assert render_text(HEAD, [Answer("x", FinishReason.STOP, USAGE)]) == (
        b'{"id":"chatcmpl-1","object":"text_completion","created":1700000000,"model":"gemma-7b-it-lora","choices":[{'
        b'"index":0,"text":"x","logprobs":null,"finish_reason":"stop"}],' + USAGE_BYTES + b"}"
    )


def test_the_usage_of_choices() -> None:
    """Choices of one prompt count the prompt once; those of several prompts count each."""
    answers = [Answer("x", FinishReason.STOP, USAGE)] * 4
    usage = json.loads(render_chat(replace(HEAD, n_for_each_prompt=2), answers))["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (14, 8, 22)
    assert usage["prompt_tokens_details"] == {"cached_tokens": 6}
    assert usage["completion_tokens_details"] == {"accepted_prediction_tokens": 4, "rejected_prediction_tokens": 16}


def test_chat_logprobs() -> None:
    """Each token with its bytes and the likeliest tokens in its place."""
    answer = Answer("Hé", FinishReason.STOP, USAGE, (SCORE, HALF), end_score=END)
    choice = json.loads(render_chat(SCORED, [answer]))["choices"][0]
    alternatives = [
        {"token": "H", "logprob": -0.5, "bytes": [72]},
        {"token": "é", "logprob": -1.5, "bytes": [195, 169]},
    ]
    assert choice["logprobs"] == {
        "content": [
            {"token": "H", "logprob": -0.5, "bytes": [72], "top_logprobs": alternatives},
            {"token": r"bytes:\xc3", "logprob": -2.0, "bytes": [195], "top_logprobs": []},
        ],
        "refusal": None,
    }


def test_text_logprobs() -> None:
    """Four lists of one length; the token that ended the answer is the last, as lm-evaluation-harness counts on."""
    first = TokenScore(b"<bos>", None)
    answer = Answer("<bos>Hé", FinishReason.STOP, USAGE, (first, SCORE, HALF, TokenScore(b"\xa9", -3.0)), end_score=END)
    assert json.loads(render_text(SCORED, [answer]))["choices"][0]["logprobs"] == {
        "tokens": ["<bos>", "H", r"bytes:\xc3", r"bytes:\xa9", "<end_of_turn>"],
        "token_logprobs": [None, -0.5, -2.0, -3.0, -4.0],
        "top_logprobs": [
            None,
            {"H": -0.5, "é": -1.5},
            {r"bytes:\xc3": -2.0},
            {r"bytes:\xa9": -3.0},
            {"<end_of_turn>": -4.0},
        ],
        "text_offset": [0, 5, 6, 6, 7],
    }


def test_chat_stream() -> None:
    """The role of each choice comes once, with the headers; usage only where it was asked for."""
    frames = ChatFrames(HEAD, 1, includes_usage=True)
    assert frames.start() == (
        CHUNK + b'{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}\n\n'
    )
    assert frames.text(TextPiece(0, "a")) == (
        CHUNK + b'{"index":0,"delta":{"content":"a"},"logprobs":null,"finish_reason":null}]}\n\n'
    )
    assert frames.end(TextEnd(0, FinishReason.STOP, USAGE)) == (
        CHUNK + b'{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}]}\n\n'
    )
    assert frames.close(USAGE) == CHUNK + b"]," + USAGE_BYTES + b"}\n\ndata: [DONE]\n\n"
    assert ChatFrames(HEAD, 1, includes_usage=False).close(USAGE) == b"data: [DONE]\n\n"
    assert ChatFrames(HEAD, 3, includes_usage=False).start().count(b'"role"') == 3


def test_text_stream() -> None:
    """Pieces, why it ended, the end; offsets of logprobs go on from piece to piece."""
    frames = TextFrames(HEAD, includes_usage=False)
    assert frames.start() == b""
    assert frames.text(TextPiece(0, "a")) == TEXT + b'{"index":0,"text":"a","logprobs":null,"finish_reason":null}]}\n\n'
    assert frames.end(TextEnd(0, FinishReason.LENGTH, USAGE)) == (
        TEXT + b'{"index":0,"text":"","logprobs":null,"finish_reason":"length"}]}\n\n'
    )
    assert frames.close(USAGE) == b"data: [DONE]\n\n"
    assert TextFrames(HEAD, includes_usage=True).close(USAGE).count(USAGE_BYTES) == 1
    scored = TextFrames(SCORED, includes_usage=False)
    scored.text(TextPiece(1, "H", (SCORE,)))
    assert b'"text_offset":[1]' in scored.text(TextPiece(1, "H", (SCORE,)))
    assert b'"text_offset":[0]' in scored.text(TextPiece(0, "H", (SCORE,)))
    assert b'"tokens":["<end_of_turn>"]' in scored.end(TextEnd(1, FinishReason.STOP, USAGE, END))


def test_a_broken_stream_says_why() -> None:
    """The error is an event of its own; a bug's words stay with us."""
    assert ChatFrames(HEAD, 1, includes_usage=False).error(errors.EngineDied("killed")) == (
        b'data: {"error":{"message":"killed","type":"server_error","param":null,"code":null}}\n\n'
    )
    assert b"secret" not in TextFrames(HEAD, includes_usage=False).error(ValueError("secret"))


def test_models() -> None:
    """The list of models; an adapter tells its name and its base model."""
    assert render_models([ModelEntry("m", 5), ModelEntry("m:a", 6, "a", "m")]) == (
        b'{"object":"list","data":[{"id":"m","object":"model","created":5,"owned_by":"gemlane","root":"m","parent":null},'
        b'{"id":"m:a","object":"model","created":6,"owned_by":"gemlane","root":"a","parent":"m"}]}'
    )


def test_a_wrong_parameter_is_named() -> None:
    """``param`` holds its key, and ``code`` says what kind of mistake it is."""
    assert render_error(errors.UnsupportedParameter("audio is not served", "audio"))[1] == (
        b'{"error":{"message":"audio is not served","type":"invalid_request_error","param":"audio",'
        b'"code":"unsupported_parameter"}}'
    )


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.InvalidRequest("x"), 400, None),
        (errors.MissingBody("x"), 400, None),
        (errors.InvalidParameter("x", "n"), 400, "invalid_value"),
        (errors.UnsupportedParameter("x", "n"), 400, "unsupported_parameter"),
        (errors.UnknownParameter("x", "n"), 400, "unknown_parameter"),
        (errors.UnsupportedGrammar("x", "n"), 400, "unsupported_grammar"),
        (errors.RequestTooLarge("x"), 413, "request_too_large"),
        (errors.ContextExceeded("x"), 400, "context_length_exceeded"),
        (errors.UnknownRoute("x"), 404, "unknown_url"),
        (errors.MethodNotAllowed("x", "PUT"), 405, "method_not_supported"),
        (errors.UnknownModel("x", "m"), 404, "model_not_found"),
        (errors.UnknownAdapter("x", "a"), 404, "model_not_found"),
        (errors.IncompleteAdapter("x"), 400, "adapter_unusable"),
        (errors.IncompatibleAdapter("x"), 400, "adapter_unusable"),
        (errors.InvalidAdapter("x"), 400, "adapter_unusable"),
        (errors.AdapterChanged("x"), 409, "adapter_changed"),
        (errors.Unauthorized("x"), 401, "invalid_api_key"),
        (errors.MissingCredentials("x"), 401, "invalid_api_key"),
        (errors.MalformedCredentials("x"), 401, "invalid_api_key"),
        (errors.ForeignOrigin("x"), 403, "foreign_origin"),
        (errors.Overloaded("x"), 429, "rate_limit_exceeded"),
        (errors.RequestTimeout("x"), 408, "request_timeout"),
        (errors.EngineUnavailable("x"), 503, "engine_unavailable"),
        (errors.EngineDied("x"), 500, None),
        (errors.OutOfMemory("x"), 500, None),
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
