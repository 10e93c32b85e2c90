"""Each message of the pipe is one line and decodes to an equal message."""

from __future__ import annotations

import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import messages, pipe
from runtime.config import EngineSettings
from runtime.generation import (
    Blend,
    BlendMember,
    Dry,
    FinishReason,
    GenerationRequest,
    Grammar,
    GrammarKind,
    Prompt,
    Sampling,
    Segment,
    TokenBias,
    Usage,
)

REQUEST = GenerationRequest(
    "r1",
    Prompt(
        (
            Segment("<start_of_turn>user\n", has_control_tokens=True),
            Segment("h\u00e9\n\u2028", has_control_tokens=False),
        )
    ),
    max_tokens=7,
    sampling=Sampling(
        temperature=0.5,
        seed=9_999_999_999,
        dry=Dry(0.5, breakers=("\n", "\u2028")),
        biases=(TokenBias(5, -100.0), TokenBias(7, 1.5)),
        grammar=Grammar(GrammarKind.GBNF, 'root ::= "\u00e9"'),
    ),
    blend=Blend((BlendMember("b" * 64, 0.5), BlendMember("a" * 64))),
    stop=("\n\n",),
    n_logprobs=3,
)
STATS = messages.Stats(
    n_running=1,
    n_waiting=2,
    n_kv_cells_used=3,
    n_kv_cells_kept=4,
    n_steps=5,
    n_decoded_tokens=6,
    n_prompt_tokens=7,
    n_cached_tokens=8,
    n_drafted_tokens=10,
    n_accepted_tokens=9,
    n_steps_by_blends=((1, 4), (3, 1)),
    lanes=messages.LaneStats(1, 2, 3, 4, 5),
    running_blends=(Blend(), REQUEST.blend),
    waiting_blends=(REQUEST.blend,),
)
SCORE = messages.TokenScore(b"\xe2\x80", -0.5, (messages.Alternative(b"a", -1.5), messages.Alternative(b"\n", -2.5)))
EXAMPLES: tuple[messages.Message, ...] = (
    messages.Load(EngineSettings(model="base.gguf"), "/state"),
    messages.Generate(REQUEST),
    messages.Cancel("r1"),
    messages.AddAdapter("a" * 64, "/adapters/a.gguf"),
    messages.RemoveAdapter("a" * 64),
    messages.AdapterRemoved("a" * 64),
    messages.PinAdapter("a" * 64, is_pinned=True),
    messages.Loading(0.5),
    messages.Ready(messages.ModelInfo("m", 1, 2, 3, 4, 5, 6, "CPU"), "mixed", "its self-check passed", "0c1e570"),
    messages.BatchingChanged("mixed", "its self-check passed"),
    messages.LoadFailed("model_load", "no such file"),
    messages.Working(("r", "s"), 6.0),
    messages.AdapterAdded("a" * 64),
    messages.AdapterRefused("a" * 64, "invalid_adapter", "rank 0"),
    messages.Accepted("r1", 12),
    messages.PromptScores("r1", (messages.TokenScore(b"a", None), SCORE)),
    messages.Started("r1", 12, 3, 0.5, 0.25),
    messages.Text("r1", "\U0001f600\n", 2, (SCORE,)),
    messages.Finished("r1", FinishReason.LENGTH, Usage(3, 4, 1), SCORE),
    messages.Failed("r1", "decode", "no room"),
    STATS,
)


def test_every_kind_has_an_example() -> None:
    """The examples of these tests cover every kind of message."""
    assert {type(example) for example in EXAMPLES} == set(typing.get_args(messages.Message))


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_a_message_is_one_line_and_comes_back_equal(message: messages.Message) -> None:
    """A message encodes to one line, with one newline at its end, and decodes to an equal message."""
    line = pipe.encode(message)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert pipe.decode(line) == message


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_no_text_can_break_the_framing(text: str) -> None:
    """Text with any character, newlines included, encodes to one line."""
    line = pipe.encode(messages.Text("r", text))
    assert line.count(b"\n") == 1
    assert pipe.decode(line) == messages.Text("r", text)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "x",
        "[]",
        "5",
        "{}",
        '{"is":"Nothing"}',
        '{"is":"Cancel"}',
        '{"is":"Cancel","request_id":"r","more":1}',
        '{"is":"Finished","request_id":"r","finish_reason":"bored","usage":{"n_prompt_tokens":1,"n_completion_tokens":1}}',
    ],
)
def test_what_is_no_message_is_refused(line: str) -> None:
    """A line that is not a message raises a ValueError, and no other error."""
    with pytest.raises(ValueError, match=r"."):
        pipe.decode(line)
