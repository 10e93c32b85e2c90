"""Requests to the engine and what describes their answers: plain values, valid once built.

Nothing here knows HTTP, a dialect's field names, or llama.cpp.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from enum import StrEnum

# vLLM has the same limit (vllm/sampling_params.py, _SAMPLING_EPS).
_MIN_TEMPERATURE = 1e-5
MAX_SCALE = 100.0
"""The largest factor on an adapter's change, of either sign."""
_DIGEST = re.compile(r"[0-9a-f]{64}")


class FinishReason(StrEnum):
    """Why an answer ended."""

    STOP = "stop"
    """The model ended its turn, or a stop string came."""
    LENGTH = "length"
    """``max_tokens`` or the context window was reached."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of prompt text.

    ``has_control_tokens`` says who wrote it: in our template and in raw prompts ``<start_of_turn>`` is a token; inside
    a user's message it is text.
    """

    text: str
    has_control_tokens: bool

    def __post_init__(self) -> None:
        """Refuse text that has no UTF-8 form.

        Raises:
            ValueError: the text holds a lone surrogate.
        """
        try:
            self.text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"prompt text is not valid Unicode at character {error.start}") from error


@dataclass(frozen=True, slots=True)
class Prompt:
    """Segments in order. The engine puts ``<bos>`` in front unless the text begins with it.

    ``is_chat`` says that the segments are Gemma's chat template, which only some vocabularies can write.
    """

    segments: tuple[Segment, ...]
    is_chat: bool = False

    @property
    def text(self) -> str:
        """The prompt as one string, for logs and tests."""
        return "".join(segment.text for segment in self.segments)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. The defaults sample at temperature 0.6, with nothing else changed.

    Edges, the same for every dialect:

    - ``temperature`` 0 is greedy: the most likely token, whatever the other filters say. So is one below 1e-5, by which
      logits would be divided beyond what a float holds.
    - ``top_k`` 0 and ``top_p`` >= 1 are off; ``top_p`` 0 keeps the single most likely token.
    - ``repetition_penalty`` 0 and 1 are off (0 would divide by zero). It counts prompt and answer;
      ``frequency_penalty`` and ``presence_penalty`` count the answer alone (vLLM's meaning).
    - ``seed`` None draws a fresh one; two requests with equal seed, prompt and adapters get equal answers.
    """

    temperature: float = 0.6
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0

    def __post_init__(self) -> None:
        """Check every range.

        Raises:
            ValueError: a value is not finite or out of its range.
        """
        _check_range("temperature", self.temperature, 0, 5)
        _check_range("top_p", self.top_p, 0, 2)
        _check_range("top_k", self.top_k, 0, 1_000_000)
        _check_range("repetition_penalty", self.repetition_penalty, 0, 2)
        _check_range("frequency_penalty", self.frequency_penalty, -2, 2)
        _check_range("presence_penalty", self.presence_penalty, -2, 2)
        if self.seed is not None:
            _check_range("seed", self.seed, 0, 2**63 - 1)

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature < _MIN_TEMPERATURE


@dataclass(frozen=True, slots=True, order=True)
class BlendMember:
    """One adapter of a blend: the SHA-256 of its GGUF in hexadecimal, and the factor on its delta.

    ``name`` is what the client called it, for messages alone: it takes no part in comparisons.
    """

    digest: str
    scale: float = 1.0
    name: str = field(default="", compare=False)

    @property
    def shown_name(self) -> str:
        """What to call it in a message."""
        return self.name or self.digest[:12]

    def __post_init__(self) -> None:
        """Check the digest's form and the scale's range.

        Raises:
            ValueError: the digest is not 64 hexadecimal digits, or the scale not finite within -100..100.
        """
        if not _DIGEST.fullmatch(self.digest):
            raise ValueError(f"digest must be 64 hexadecimal digits, not {self.digest!r}")
        _check_range("scale", self.scale, -MAX_SCALE, MAX_SCALE)


@dataclass(frozen=True, slots=True)
class Blend:
    """Adapters applied together, by content and never by name; no members is the base model.

    Members are kept sorted, so equal sets compare equal: a blend is the key of a lane and of cached prefixes.
    """

    members: tuple[BlendMember, ...] = ()

    def __post_init__(self) -> None:
        """Sort the members.

        Raises:
            ValueError: an adapter stands twice.
        """
        if len({member.digest for member in self.members}) < len(self.members):
            raise ValueError("an adapter may stand only once in a blend")
        object.__setattr__(self, "members", tuple(sorted(self.members)))

    @property
    def is_base(self) -> bool:
        """Whether this is the base model alone."""
        return not self.members


BASE = Blend()


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A request for one answer. With ``max_tokens`` 0 the prompt is computed and the answer is empty."""

    request_id: str
    prompt: Prompt
    max_tokens: int = 256
    sampling: Sampling = field(default_factory=Sampling)
    blend: Blend = BASE
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the counts.

        Raises:
            ValueError: ``max_tokens`` is negative or a stop string is empty.
        """
        _check_range("max_tokens", self.max_tokens, 0, 2**31 - 1)
        if any(not text for text in self.stop):
            raise ValueError("a stop string must not be empty")


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer. ``n_cached_tokens`` of the prompt's tokens were not computed again."""

    n_prompt_tokens: int
    n_completion_tokens: int
    n_cached_tokens: int = 0

    @property
    def n_total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.n_prompt_tokens + self.n_completion_tokens


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise ValueError(f"{name} must be between {low} and {high}, not {value}")
