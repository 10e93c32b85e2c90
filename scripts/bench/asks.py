"""What a benchmark asks of a server and what comes back, in the wire format of each server.

Knows the two wire formats; opens no connection.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

MODEL = "gemma-7b-it-lora"


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: exactly `n_tokens` greedy tokens after `prompt`, with adapter number `adapter` or none."""

    prompt: str
    n_tokens: int
    adapter: int | None = None
    more: Mapping[str, Any] = field(default_factory=dict)
    """Further keys of the body, for gemlane only."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One event of a stream; the event with the usage has `n_tokens`."""

    text: str = ""
    n_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole stream. Times in seconds; `arrivals_s` are its text events', from the request's start.

    `cpu_s` and `decode_cpu_s` (after the first token) are the server's, for all it did in that time:
    this request's cost where no other runs.
    """

    text: str
    n_tokens: int
    arrivals_s: tuple[float, ...]
    wall_s: float
    cpu_s: float
    decode_cpu_s: float

    @property
    def first_token_s(self) -> float:
        """Seconds from the request to its first text."""
        return self.arrivals_s[0]

    @property
    def decode_s(self) -> float:
        """Seconds for each token after the first."""
        return (self.arrivals_s[-1] - self.arrivals_s[0]) / (self.n_tokens - 1)


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a server is asked and how an event of its stream is read."""

    path: str
    render: Callable[[Ask], dict[str, Any]]
    parse: Callable[[Mapping[str, Any]], Piece]


def render_gemlane(ask: Ask) -> dict[str, Any]:
    """The body of a plain completion; adapters are named by their number, as make_shapes names their files."""
    return {
        "model": MODEL if ask.adapter is None else f"{MODEL}:{ask.adapter + 1:03d}",
        "prompt": ask.prompt,
        "max_tokens": ask.n_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        # Random weights repeat themselves, which would be guessed: every benchmark but one measures plain decoding.
        "speculative.n_max": 0,
        **ask.more,
    }


def parse_gemlane(event: Mapping[str, Any]) -> Piece:
    """An event of our stream."""
    usage, choices = event.get("usage"), event["choices"]
    return Piece(str(choices[0]["text"]) if choices else "", int(usage["completion_tokens"]) if usage else None)


def render_llama_server(ask: Ask) -> dict[str, Any]:
    """The body of llama-server's own /completion. Source: llama.cpp tools/server/README.md."""
    lora = [] if ask.adapter is None else [{"id": ask.adapter, "scale": 1.0}]
    return {
        "prompt": ask.prompt,
        "n_predict": ask.n_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "cache_prompt": False,
        "stream": True,
        "lora": lora,
    }


def parse_llama_server(event: Mapping[str, Any]) -> Piece:
    """An event of llama-server's stream; the last one counts the tokens."""
    return Piece(str(event["content"]), int(event["tokens_predicted"]) if event["stop"] else None)


GEMLANE = Dialect("/v1/completions", render_gemlane, parse_gemlane)
LLAMA_SERVER = Dialect("/completion", render_llama_server, parse_llama_server)


def random_prompt(generator: np.random.Generator, n_tokens: int) -> str:
    """A prompt of `n_tokens` tokens, `<bos>` counted, in make_shapes' words: numbers of two digits."""
    return "".join(f" {number}" for number in generator.integers(10, 100, n_tokens - 1))
