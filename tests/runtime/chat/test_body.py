"""Bodies of chat completions and completions to values."""

from typing import Any

import pytest

from runtime.adapters.blend import BlendTerm
from runtime.chat.body import IGNORED, REFUSED, CompletionInput, parse_chat, parse_text
from runtime.errors import InvalidParameter, InvalidRequest, UnknownParameter, UnsupportedParameter
from runtime.generation import Dry, Grammar, GrammarKind, Sampling, TokenBias

MINIMAL: dict[str, Any] = {"model": "m", "messages": []}
DEFAULTS = CompletionInput(
    model="m",
    lora=(),
    max_tokens=None,
    sampling=Sampling(),
    structure_param="",
    stop=(),
    n_choices=1,
    n_logprobs=None,
    has_echo=False,
    is_stream=False,
    includes_usage=False,
    n_draft_max=None,
    prediction="",
    ignored=(),
)


def test_defaults() -> None:
    """A key that is missing or null has its default."""
    assert parse_chat(MINIMAL) == DEFAULTS
    nulls = dict.fromkeys(["stop", "temperature", "max_tokens", "stream", "stream_options", "n", "tools", "seed"])
    assert parse_chat(MINIMAL | nulls) == DEFAULTS
    assert parse_text({"model": "m", "prompt": "x"}) == DEFAULTS


def test_every_parameter_arrives() -> None:
    """Each parameter has its place in the values."""
    same: dict[str, Any] = {
        "temperature": 2,
        "top_p": 0.5,
        "top_k": 3,
        "seed": 42,
        "repetition_penalty": 1.5,
        "frequency_penalty": -2,
        "presence_penalty": 2,
        "min_p": 0.25,
        "typical_p": 0.75,
        "xtc_probability": 0.5,
        "xtc_threshold": 0.2,
    }
    dry = {"dry_multiplier": 0.8, "dry_base": 2, "dry_allowed_length": 3, "dry_penalty_last_n": 9}
    rest = {
        "max_tokens": 5,
        "max_completion_tokens": 7.0,
        "stop": ["a", "b", "a"],
        "stream": True,
        "stream_options": {"include_usage": True},
        "lora": "pirate:0.5",
        "n": 3,
        "logprobs": True,
        "top_logprobs": 4,
        "logit_bias": {"5": -100, "7": 1.5},
        "ignore_eos": True,
        "repeat_last_n": 64,
        "dry_sequence_breakers": ["\n", "x"],
        "response_format": {"type": "json_object"},
        "num_ctx": 4096,
        "user": "me",
        "speculative.n_max": 4,
        "prediction": {"type": "content", "content": "Ahoy"},
    }
    asked = parse_chat(MINIMAL | same | dry | rest)
    assert asked == CompletionInput(
        model="m",
        lora=(BlendTerm("pirate", 0.5),),
        max_tokens=7,
        sampling=Sampling(
            **same,
            dry=Dry(0.8, 2, 3, 9, ("\n", "x")),
            biases=(TokenBias(5, -100), TokenBias(7, 1.5)),
            ignores_end=True,
            repetition_window=64,
            grammar=Grammar(GrammarKind.JSON_SCHEMA, '{"type":"object"}'),
        ),
        structure_param="response_format",
        stop=("a", "b"),
        n_choices=3,
        n_logprobs=4,
        has_echo=False,
        is_stream=True,
        includes_usage=True,
        n_draft_max=4,
        prediction="Ahoy",
        ignored=("num_ctx", "user"),
    )


@pytest.mark.parametrize(
    ("fields", "max_tokens"),
    [
        ({"max_tokens": -1}, 2**31 - 1),
        ({"n_predict": -2}, 2**31 - 1),
        ({"n_predict": 9}, 9),
        ({"num_predict": 9, "max_tokens": 5}, 5),
        ({"max_tokens": 2**40}, 2**31 - 1),
    ],
)
def test_the_longest_answer_has_many_names(fields: dict[str, Any], max_tokens: int) -> None:
    """llama-server's and Ollama's names count too, and a negative length is the context window."""
    assert parse_chat(MINIMAL | fields).max_tokens == max_tokens


def test_names_of_other_servers() -> None:
    """``repeat_penalty`` is ``repetition_penalty``, and ``top_k`` -1 is off."""
    assert parse_chat(MINIMAL | {"repeat_penalty": 1.2, "top_k": -1}).sampling == Sampling(repetition_penalty=1.2)
    both = {"repeat_penalty": 1.2, "repetition_penalty": 1.1}
    assert parse_chat(MINIMAL | both).sampling == Sampling(repetition_penalty=1.1)


def test_a_prediction_may_come_in_parts() -> None:
    """Text parts are put together as they stand; an empty prediction is none."""
    parts = [{"type": "text", "text": "def f():"}, {"type": "text", "text": "\n    pass"}]
    assert (
        parse_chat(MINIMAL | {"prediction": {"type": "content", "content": parts}}).prediction == "def f():\n    pass"
    )
    assert parse_chat(MINIMAL | {"prediction": {"type": "content", "content": ""}}).prediction == ""
    assert parse_chat(MINIMAL | {"prediction": None, "speculative.n_max": None}) == DEFAULTS


@pytest.mark.parametrize(
    "value",
    [
        "text",
        {},
        {"type": "content"},
        {"type": "text", "content": "x"},
        {"type": "content", "content": {}},
        {"type": "content", "content": ["x"]},
        {"type": "content", "content": "\ud800"},
        {"type": "content", "content": [{"type": "text", "text": 5}]},
        {"type": "content", "content": [{"type": "image_url", "text": "x"}]},
    ],
)
def test_a_prediction_of_another_form_is_refused(value: Any) -> None:
    """What is not OpenAI's object, or has no UTF-8 form, is refused by name."""
    with pytest.raises(InvalidParameter, match=r"^prediction") as caught:
        parse_chat(MINIMAL | {"prediction": value})
    assert caught.value.param == "prediction"


@pytest.mark.parametrize("value", [-1, 0.5, "4", True, 2**31])
def test_a_draft_length_of_another_kind_is_refused(value: Any) -> None:
    """Only a whole number from 0 is the most drafted tokens of a step."""
    with pytest.raises(InvalidParameter, match=r"^speculative\.n_max must be"):
        parse_chat(MINIMAL | {"speculative.n_max": value})


def test_one_stop_may_stand_alone() -> None:
    """A string is as good as a list of one."""
    assert parse_chat(MINIMAL | {"stop": "END"}).stop == ("END",)


def test_any_64_bit_seed_is_a_seed() -> None:
    """A negative seed is a seed too, and equal seeds stay equal."""
    assert parse_chat(MINIMAL | {"seed": -1}).sampling.seed == 2**63 - 1


def test_logprobs() -> None:
    """A chat asks with a boolean and a count, a plain completion with one number; 0 is the chosen token's alone."""
    assert parse_chat(MINIMAL | {"logprobs": True}).n_logprobs == 0
    assert parse_chat(MINIMAL | {"logprobs": False, "top_logprobs": 0}).n_logprobs is None
    text = {"model": "m", "prompt": "x"}
    assert [parse_text(text | {"logprobs": value}).n_logprobs for value in (None, False, 0, 5)] == [None, None, 0, 5]
    assert parse_text(text | {"echo": True}).has_echo


@pytest.mark.parametrize(
    ("fields", "param", "text"),
    [
        ({"n": 0}, "n", "n must be at least 1 and at most 128"),
        ({"n": True}, "n", "n must be a whole number"),
        ({"logprobs": 1}, "logprobs", "logprobs must be a boolean"),
        ({"top_logprobs": 3}, "top_logprobs", "top_logprobs needs logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "at most 20"),
        ({"max_tokens": -3}, "max_tokens", "max_tokens must be at least -2"),
        ({"max_tokens": "5"}, "max_tokens", "max_tokens must be a whole number"),
        ({"max_tokens": 1.5}, "max_tokens", "max_tokens must be a whole number"),
        ({"max_tokens": float("inf")}, "max_tokens", "max_tokens must be a whole number"),
        ({"max_tokens": True}, "max_tokens", "max_tokens must be a whole number"),
        ({"temperature": 5.1}, "temperature", "temperature must be a number between 0 and 5"),
        ({"temperature": float("inf")}, "temperature", "temperature must be"),
        ({"temperature": "hot"}, "temperature", "temperature must be"),
        ({"top_k": -2}, "top_k", "top_k must be at least -1"),
        ({"stop": [""]}, "stop", "each stop"),
        ({"stop": ["x"] * 17}, "stop", "stop must be"),
        ({"stop": 5}, "stop", "stop must be"),
        ({"stop": False}, "stop", "stop must be"),
        ({"stop": "\ud800"}, "stop", "stop is not valid Unicode"),
        ({"stream": "true"}, "stream", "stream must be a boolean"),
        ({"stream_options": []}, "stream_options", "stream_options must be an object"),
        ({"stream_options": {"include_usage": 1}}, "include_usage", "include_usage must be a boolean"),
        ({"model": 5}, "model", "model must be a string"),
        ({"logit_bias": {"x": 5}}, "logit_bias", "logit_bias must map token ids"),
        ({"logit_bias": {"5": 101}}, "logit_bias", "logit_bias must map token ids"),
        ({"logit_bias": [5]}, "logit_bias", "logit_bias must be an object"),
        ({"dry_sequence_breakers": [1]}, "dry_sequence_breakers", "each dry_sequence_breakers"),
    ],
)
def test_refusals(fields: dict[str, Any], param: str, text: str) -> None:
    """Each refusal names its parameter, in words and as a value."""
    with pytest.raises(InvalidParameter, match=text) as caught:
        parse_chat(MINIMAL | fields)
    assert caught.value.param == param


def test_lora_is_read_by_its_own_parser() -> None:
    """A wrong ``lora`` is refused."""
    with pytest.raises(InvalidRequest, match="lora must be a string"):
        parse_chat(MINIMAL | {"lora": 5})


@pytest.mark.parametrize("key", sorted(REFUSED))
def test_what_is_not_served_is_refused_by_name(key: str) -> None:
    """A value that asks for something is refused; one that asks for nothing passes and changes nothing."""
    with pytest.raises(UnsupportedParameter, match=f"^{key} is not served") as caught:
        parse_chat(MINIMAL | {key: "something"})
    assert caught.value.param == key
    for neutral in REFUSED[key]:
        assert parse_chat(MINIMAL | {key: neutral}) == DEFAULTS


@pytest.mark.parametrize("key", sorted(IGNORED))
def test_what_changes_nothing_is_named(key: str) -> None:
    """A key that this model cannot act on is accepted, and its name is reported to the client."""
    assert parse_chat(MINIMAL | {key: {"some": "value"}}).ignored == (key,)


def test_tools_are_ignored_unless_one_must_be_called() -> None:
    """A model that was not trained for tools answers in text; a call that is asked for by name is refused."""
    tools = {"tools": [{"type": "function", "function": {"name": "f"}}]}
    assert parse_chat(MINIMAL | tools | {"tool_choice": "auto"}).ignored == ("tools",)
    for choice in ("required", {"type": "function", "function": {"name": "f"}}):
        with pytest.raises(UnsupportedParameter, match="tool_choice"):
            parse_chat(MINIMAL | tools | {"tool_choice": choice})


def test_unknown_parameters_pass_where_the_dialect_ignores_them() -> None:
    """Workers AI ignores keys that it does not know; a key that is known and not served is refused there too."""
    with pytest.raises(UnknownParameter, match="unknown parameter 'whatever'"):
        parse_chat(MINIMAL | {"whatever": 1})
    parse_chat(MINIMAL | {"whatever": 1}, is_strict=False)
    with pytest.raises(UnsupportedParameter, match="audio is not served"):
        parse_chat(MINIMAL | {"audio": {}}, is_strict=False)
