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
MAX_GRAMMAR_CHARACTERS = 1 << 16
MAX_LOGPROBS = 20
"""The most alternatives to a token that a request may ask for; OpenAI's limit."""
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
        _check_text("prompt text", self.text)


@dataclass(frozen=True, slots=True)
class Prompt:
    """Segments in order, or token ids.

    The engine puts ``<bos>`` in front of segments unless the text begins with it; token ids stay as they are.
    ``is_chat`` says that the segments are Gemma's chat template, which only some vocabularies can write.
    """

    segments: tuple[Segment, ...]
    is_chat: bool = False
    tokens: tuple[int, ...] = ()

    @property
    def text(self) -> str:
        """The prompt as one string, for logs and tests."""
        return "".join(segment.text for segment in self.segments)


class GrammarKind(StrEnum):
    """The language that a grammar is written in."""

    JSON_SCHEMA = "json_schema"
    """A JSON schema; answers are JSON."""
    GBNF = "gbnf"
    """llama.cpp's notation, whose first rule is ``root``."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """What a whole answer has to match. Only the engine knows whether it can be compiled."""

    kind: GrammarKind
    text: str

    def __post_init__(self) -> None:
        """Check the size.

        Raises:
            ValueError: the text is empty, or longer than any grammar that can be compiled in time.
        """
        if not 0 < len(self.text) <= MAX_GRAMMAR_CHARACTERS:
            raise ValueError(f"a grammar or schema must have 1 to {MAX_GRAMMAR_CHARACTERS} characters")


@dataclass(frozen=True, slots=True)
class TokenBias:
    """What is added to the logit of one token before anything else."""

    token: int
    bias: float

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: a negative token id, or a bias that is not finite within -100..100.
        """
        _check_range("a biased token", self.token, 0, 2**31 - 1)
        _check_range("a bias", self.bias, -100, 100)


@dataclass(frozen=True, slots=True)
class Dry:
    """A penalty that grows with the length of a repeated passage ("don't repeat yourself"); multiplier 0 is off.

    Source: llama.cpp, ``llama_sampler_init_dry``; the defaults are those of its server.
    """

    multiplier: float = 0.0
    base: float = 1.75
    allowed_length: int = 2
    last_n: int = -1
    """Tokens that are searched for repetitions; -1: all."""
    breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    """Texts that no repeated passage reaches across."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: a value is not finite or out of its range.
        """
        _check_range("dry_multiplier", self.multiplier, 0, 100)
        _check_range("dry_base", self.base, 1, 100)
        _check_range("dry_allowed_length", self.allowed_length, 0, 1 << 20)
        _check_range("dry_penalty_last_n", self.last_n, -1, 1 << 20)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. The defaults sample at temperature 0.6, with nothing else changed.

    Edges, the same for every dialect:

    - ``temperature`` 0 is greedy: the most likely token, whatever the other filters say. So is one below 1e-5, by which
      logits would be divided beyond what a float holds.
    - ``top_k`` 0 and ``top_p`` >= 1 are off; ``top_p`` 0 keeps the single most likely token.
    - ``min_p`` 0, ``typical_p`` >= 1 and ``xtc_probability`` 0 are off.
    - ``repetition_penalty`` 0 and 1 are off (0 would divide by zero). It counts the last ``repetition_window`` tokens
      of prompt and answer, or all of them at -1;
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
    min_p: float = 0.0
    typical_p: float = 1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    repetition_window: int = -1
    dry: Dry = field(default_factory=Dry)
    biases: tuple[TokenBias, ...] = ()
    ignores_end: bool = False
    """Whether the tokens that end an answer are never chosen; it goes on to ``max_tokens`` or a stop string."""
    grammar: Grammar | None = None

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
        _check_range("min_p", self.min_p, 0, 1)
        _check_range("typical_p", self.typical_p, 0, 1)
        _check_range("xtc_probability", self.xtc_probability, 0, 1)
        _check_range("xtc_threshold", self.xtc_threshold, 0, 1)
        _check_range("repetition_window", self.repetition_window, -1, 1 << 20)
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
    n_logprobs: int | None = None
    """How many alternatives are given with each token's logprob, 0 to 20; None: no logprobs are given."""
    scores_prompt: bool = False
    """Whether the logprobs of the prompt's tokens are given too; the cache is then not used for the prompt."""
    n_draft_max: int | None = None
    """The most tokens that a step drafts, within the server's own limit; None: that limit; 0: no drafts."""
    prediction: str = ""
    """What the client expects the answer to be; drafts are taken from it first."""

    def __post_init__(self) -> None:
        """Check the counts.

        Raises:
            ValueError: a count is out of its range or a stop string is empty.
        """
        if self.n_logprobs is not None:
            _check_range("n_logprobs", self.n_logprobs, 0, MAX_LOGPROBS)
        _check_range("max_tokens", self.max_tokens, 0, 2**31 - 1)
        if self.n_draft_max is not None:
            _check_range("n_draft_max", self.n_draft_max, 0, 2**31 - 1)
        _check_text("the prediction", self.prediction)
        if any(not text for text in self.stop):
            raise ValueError("a stop string must not be empty")


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer. ``n_cached_tokens`` of the prompt's tokens were not computed again."""

    n_prompt_tokens: int
    n_completion_tokens: int
    n_cached_tokens: int = 0
    n_drafted_tokens: int = 0
    """Tokens that were drafted for the answer."""
    n_accepted_tokens: int = 0
    """Those of them that the model accepted."""

    @property
    def n_rejected_tokens(self) -> int:
        """Drafted tokens that were not accepted."""
        return self.n_drafted_tokens - self.n_accepted_tokens

    @property
    def n_total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.n_prompt_tokens + self.n_completion_tokens


def _check_text(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} is not valid Unicode at character {error.start}") from error


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise ValueError(f"{name} must be between {low} and {high}, not {value}")
