"""The bodies of chat completions and completions: OpenAI's names -> values. Pure.

Two dialects read these bodies alike; what they answer is their own. A parameter that would change the answer and that
is not served is refused by name. One that changes nothing here is ignored, and named to the client. ``null`` is as good
as absent. Sources: OpenAI's API reference, "Create chat completion" and "Create completion"; llama.cpp
``tools/server/README.md``; vLLM's "OpenAI-compatible server"; Ollama's ``docs/api.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from runtime.adapters.blend import BlendTerm, parse_lora
from runtime.chat import sampling
from runtime.chat.drafts import DRAFT_FIELDS, DRAFT_KEY
from runtime.chat.fields import Field, boolean, integer, read_fields, record, text, texts
from runtime.chat.structured import parse_structure
from runtime.errors import InvalidParameter, UnknownParameter, UnsupportedParameter
from runtime.generation import MAX_LOGPROBS, Sampling

MAX_CHOICES: Final = 128
_MAX_TOKENS: Final = 2**31 - 1
_LIMITS: Final = ("max_completion_tokens", "max_tokens", "n_predict", "num_predict")
"""Names of the longest answer, in their order; below zero there is no limit but the context window."""

COMMON_FIELDS: Final[Mapping[str, Field]] = {
    "model": text(),
    **dict.fromkeys(_LIMITS, integer(-2)),
    **sampling.FIELDS,
    **DRAFT_FIELDS,
    "n": integer(1, MAX_CHOICES),
    "stop": texts(16, 1000),
    "stream": boolean(),
    "stream_options": record(),
}
CHAT_FIELDS: Final[Mapping[str, Field]] = {
    **COMMON_FIELDS,
    "logprobs": boolean(),
    "top_logprobs": integer(0, MAX_LOGPROBS),
}
TEXT_FIELDS: Final[Mapping[str, Field]] = {
    **COMMON_FIELDS,
    "logprobs": integer(0, MAX_LOGPROBS),
    "echo": boolean(),
}
STRUCTURE_KEYS: Final = ("response_format", "json_schema", "grammar")
IGNORED: Final = frozenset(
    [
        *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
        *("prompt_cache_retention", "reasoning_effort", "verbosity", "parallel_tool_calls", "options", "tools"),
        *("chat_template_kwargs", "cache_prompt", "keep_alive", "num_ctx", "id_slot", "slot_id", "n_keep", "samplers"),
        *("min_keep", "n_probs", "post_sampling_probs", "return_tokens", "timings_per_token", "return_progress"),
        *("reasoning_format", "reasoning", "think", "add_generation_prompt", "add_special_tokens", "priority"),
        *("cache_salt", "request_id", "skip_special_tokens", "spaces_between_special_tokens", "logit_bias_type"),
        *(
            "speculative.n_min",
            "speculative.p_min",
            "speculative.type",
            "functions",
            "ttl",
            "draft_model",
            "truncate_prompt_tokens",
            "n_discard",
            "t_max_prompt_ms",
        ),
    ]
)
"""Known keys that change nothing in the answer of this model."""
REFUSED: Final[Mapping[str, tuple[Any, ...]]] = {
    "best_of": (1,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "mirostat": (0,),
    "mirostat_tau": (5, 5.0),
    "mirostat_eta": (0.1,),
    "dynatemp_range": (0, 0.0),
    "dynatemp_exponent": (1, 1.0),
    "top_n_sigma": (-1, -1.0),
    "tfs_z": (1, 1.0),
    "min_tokens": (0,),
    "stop_token_ids": ([],),
    "bad_words": ([],),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1, 1.0),
    "early_stopping": (False,),
    "use_beam_search": (False,),
    "prompt_logprobs": (0,),
    "continue_final_message": (False,),
    "chat_template": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "structured_outputs": (),
    "grammar_lazy": (False,),
    "images": ([],),
    "documents": ([],),
}
"""Keys that are not served, and the values of each that ask for nothing."""


@dataclass(frozen=True, slots=True)
class CompletionInput:
    """What a completion asks for, prompt or messages aside. ``max_tokens`` None is the dialect's default."""

    model: str
    lora: tuple[BlendTerm, ...]
    """The adapters it names; none for the base model."""
    max_tokens: int | None
    sampling: Sampling
    structure_param: str
    """The key that asked for structured output; empty if none did."""
    stop: tuple[str, ...]
    n_choices: int
    n_logprobs: int | None
    """How many alternatives stand beside each token's logprob; None: no logprobs at all."""
    has_echo: bool
    """Whether the prompt is part of the answer."""
    is_stream: bool
    includes_usage: bool
    """Whether a stream is to end with its token counts."""
    n_draft_max: int | None
    """The most tokens that a step may draft; None leaves it to the server."""
    prediction: str
    """What the client expects the answer to be; empty if it says nothing."""
    ignored: tuple[str, ...]
    """Keys that came and changed nothing."""


def parse_chat(body: Mapping[str, Any], *, is_strict: bool = True) -> CompletionInput:
    """Everything of a chat completion but its messages. ``is_strict`` refuses keys that no server is known to have.

    Raises:
        InvalidParameter: a value of the wrong type or out of its range, or a parameter that is not served.
    """
    values = _read(CHAT_FIELDS, body, {"messages"}, is_strict=is_strict)
    n_logprobs = values.get("top_logprobs", 0) if values.get("logprobs") else None
    if n_logprobs is None and values.get("top_logprobs"):
        raise InvalidParameter("top_logprobs needs logprobs to be true", "top_logprobs")
    return _input(body, values, n_logprobs)


def parse_text(body: Mapping[str, Any]) -> CompletionInput:
    """Everything of a plain completion but its prompts.

    Raises:
        InvalidParameter: a value of the wrong type or out of its range, or a parameter that is not served.
    """
    body = {key: value for key, value in body.items() if not (key == "logprobs" and value is False)}
    values = _read(TEXT_FIELDS, body, {"prompt"}, is_strict=True)
    return _input(body, values, values.get("logprobs"))


def _read(fields: Mapping[str, Field], body: Mapping[str, Any], others: set[str], *, is_strict: bool) -> dict[str, Any]:
    known = {*fields, *others, *STRUCTURE_KEYS, "lora"}
    for key, value in body.items():
        if value is None or key in known or key in IGNORED:
            continue
        if key in REFUSED:
            if not any(value == neutral and type(value) is type(neutral) for neutral in REFUSED[key]):
                raise UnsupportedParameter(f"{key} is not served by this server; leave it out", key)
        elif is_strict:
            raise UnknownParameter(f"unknown parameter {key[:100]!r}", key[:100])
    return read_fields(fields, body)


def _input(body: Mapping[str, Any], values: Mapping[str, Any], n_logprobs: int | None) -> CompletionInput:
    structure = parse_structure(body)
    stream_options = read_fields({"include_usage": boolean()}, values.get("stream_options", {}))
    return CompletionInput(
        model=values.get("model", ""),
        lora=parse_lora(body.get("lora")),
        max_tokens=_limit(values),
        sampling=sampling.parse_sampling(body, structure.grammar if structure else None),
        structure_param=structure.param if structure else "",
        stop=values.get("stop", ()),
        n_choices=values.get("n", 1),
        n_logprobs=n_logprobs,
        has_echo=values.get("echo", False),
        is_stream=values.get("stream", False),
        includes_usage=stream_options.get("include_usage", False),
        n_draft_max=values.get(DRAFT_KEY),
        prediction=values.get("prediction", ""),
        ignored=tuple(sorted(key for key in IGNORED if body.get(key) is not None)),
    )


def _limit(values: Mapping[str, Any]) -> int | None:
    """The longest answer; the first name wins."""
    limit = next((values[name] for name in _LIMITS if name in values), None)
    if limit is None:
        return None
    return min(limit, _MAX_TOKENS) if limit >= 0 else _MAX_TOKENS
