"""Cloudflare's field names: bodies -> values, and values -> envelopes and stream frames. Pure.

Sources: the model's page (``schema.json`` is its schema); the envelope of docs "rest-api"; the frames of npm
``@cloudflare/ai`` 1.0.53, whose line form and key order are kept; the padding ``p`` of "AI side channel attack
mitigated" (blog.cloudflare.com, 2024-03-14).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from runtime.adapters.blend import BlendTerm, parse_lora
from runtime.chat.drafts import DRAFT_FIELDS, DRAFT_KEY
from runtime.cloudflare.errors import fault_of
from runtime.cloudflare.validator import type_mismatch, validate
from runtime.errors import InvalidRequest, UnknownModel
from runtime.generation import Sampling, Usage
from runtime.prompt.gemma import Message
from runtime.web.body import parse_json, render_json
from runtime.web.streams import TextEnd, TextPiece

MODEL: Final = "@cf/google/gemma-7b-it-lora"
MODEL_2B: Final = "@cf/google/gemma-2b-it-lora"
MODELS: Final = (MODEL, MODEL_2B)
"""The original's names of the two sizes of Gemma 1; they share their schema."""
SCHEMA: Final[dict[str, Any]] = json.loads((Path(__file__).parent / "schema.json").read_text(encoding="utf-8"))
DONE: Final = b"data: [DONE]\n\n"

_MAX_TOKENS: Final = 2**31 - 1
_ALPHABET: Final = "abcdefghijklmnopqrstuvwxyz0123456789"
_MAX_PADDING: Final = 47  # the longest seen in records of 2024 is about 48

Padding = Callable[[], str]


@dataclass(frozen=True, slots=True)
class RunInput:
    """What one ``run`` asks for. Exactly one of ``prompt`` and ``messages`` is given; ``lora`` () is the base model."""

    prompt: str | None
    messages: tuple[Message, ...] | None
    is_raw: bool
    is_stream: bool
    lora: tuple[BlendTerm, ...]
    max_tokens: int
    sampling: Sampling
    n_draft_max: int | None = None
    """The most tokens that a step may draft; None leaves it to the server."""


def parse_run(body: bytes, *, query_lora: str = "") -> RunInput:
    """The input that a REST body holds; ``query_lora`` is the adapter of the URL, for a body that names none.

    Raises:
        InvalidRequest: no JSON, or not what the schema asks for, in the contract's words.
    """
    return parse_inputs(parse_json(body), query_lora=query_lora)


def parse_inputs(inputs: Any, *, query_lora: str = "") -> RunInput:
    """The input that an already decoded JSON value holds.

    A list in ``lora`` and llama-server's ``speculative.n_max`` are additions to the schema, which ignores unknown keys.

    Raises:
        InvalidRequest: not what the schema asks for, in the contract's words; or an addition cannot be read.
    """
    lora = inputs.get("lora") if isinstance(inputs, dict) else None
    if isinstance(lora, list):
        inputs = {key: value for key, value in inputs.items() if key != "lora"}
    validated = validate(_with_boolean_raw(inputs), SCHEMA["input"])
    values = validated.values
    has_messages = validated.branch == "messages"
    return RunInput(
        prompt=None if has_messages else values["prompt"],
        messages=parse_messages(values["messages"]) if has_messages else None,
        is_raw=not has_messages and values["raw"],
        is_stream=values["stream"],
        lora=_lora(lora) or parse_lora(query_lora),
        max_tokens=int(min(max(values["max_tokens"], 0), _MAX_TOKENS)),
        sampling=_sampling(values),
        n_draft_max=_n_draft_max(values.get(DRAFT_KEY)),
    )


def names_of(choice: str) -> tuple[str, ...]:
    """The names that the model answers by; ``choice`` is the setting ``cloudflare_model``."""
    return MODELS if choice == "auto" else (choice,)


def check_model(model: str, choice: str) -> None:
    """Check that a name is one of the model that is served here; ``choice`` is as for ``names_of``.

    Raises:
        UnknownModel: it is another model's name.
    """
    names = names_of(choice)
    if model not in names:
        raise UnknownModel(f"this server has only {' and '.join(names)}", model)


def parse_messages(items: Any) -> tuple[Message, ...]:
    """The messages that the template can show.

    The validator lets some lists pass unseen (their first item null, say); the first-party template then shows
    nothing for an item that is not a message, and so do we.
    """
    fields = [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []
    turns = [(item.get("role"), item.get("content")) for item in fields]
    return tuple(Message(role, text) for role, text in turns if isinstance(role, str) and isinstance(text, str))


def random_padding() -> str:
    """A prefix of the alphabet, repeated, of a length that says nothing about the token beside it."""
    n_letters = secrets.randbelow(_MAX_PADDING + 1)
    return (_ALPHABET * 2)[:n_letters]


def render_result(text: str, usage: Usage) -> dict[str, Any]:
    """The bare result object, as the Worker binding gets it."""
    return {"response": text, "usage": render_usage(usage)}


def render_usage(usage: Usage) -> dict[str, int]:
    """Token counts under their names on this wire."""
    return {
        "prompt_tokens": usage.n_prompt_tokens,
        "completion_tokens": usage.n_completion_tokens,
        "total_tokens": usage.n_total_tokens,
    }


def render_envelope(result: Any, **more: Any) -> bytes:
    """The REST success envelope around ``result``; ``more`` are further top-level keys, last."""
    return render_json({"result": result, "success": True, "errors": [], "messages": [], **more})


def render_frame(value: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + render_json(value) + b"\n\n"


def render_error_frame(error: Exception) -> bytes:
    """One server-sent event with the error of a stream that has begun, as REST shows errors.

    The original's form is not known; ours has no key ``response``, so that no client takes it for text.
    """
    fault = fault_of(error)
    message = f"AiError: {fault.text}"
    return render_frame({"errors": [{"message": message, "code": fault.code}], "success": False})


@dataclass(frozen=True, slots=True)
class RunFrames:
    """The native stream: pieces of the response, then usage, then ``[DONE]``, or an error."""

    padding: Padding = random_padding

    def start(self) -> bytes:
        """Nothing."""
        return b""

    def text(self, piece: TextPiece) -> bytes:
        """The event of one piece; the key ``p`` is absent when the padding is empty."""
        padding = self.padding()
        return render_frame({"response": piece.text, "p": padding} if padding else {"response": piece.text})

    def end(self, end: TextEnd) -> bytes:
        """Usage."""
        return render_frame(render_result("", end.usage))

    def close(self, _usage: Usage) -> bytes:
        """The end of the stream."""
        return DONE

    def error(self, error: Exception) -> bytes:
        """The error as the last event, without ``[DONE]``."""
        return render_error_frame(error)


def _with_boolean_raw(inputs: Any) -> Any:
    """``raw`` may be "true" or "false" beside a prompt, since the model's page itself writes it so."""
    if isinstance(inputs, dict) and "messages" not in inputs and inputs.get("raw") in ("true", "false"):
        return inputs | {"raw": inputs["raw"] == "true"}
    return inputs


def _lora(value: Any) -> tuple[BlendTerm, ...]:
    """The adapters that a body names; the messages branch of the schema does not know the key."""
    if not isinstance(value, str | list | None):
        raise InvalidRequest(f"oneOf at '/' not met, 0 matches: {type_mismatch('lora', 'string', value)}")
    return parse_lora(value)


def _n_draft_max(value: Any) -> int | None:
    """The most drafted tokens of a step, which no schema knows."""
    return None if value is None else DRAFT_FIELDS[DRAFT_KEY].read(DRAFT_KEY, value)


def _sampling(values: dict[str, Any]) -> Sampling:
    """Sampling as asked for; what is not named keeps our default (for temperature the model's later schema, 0.6)."""
    names = ("temperature", "top_p", "repetition_penalty", "frequency_penalty", "presence_penalty")
    numbers: dict[str, Any] = {name: float(values[name]) for name in names if name in values}
    counts = {name: int(values[name]) for name in ("top_k", "seed") if name in values}
    return Sampling(**numbers, top_k=counts.get("top_k", 0), seed=counts.get("seed"))
