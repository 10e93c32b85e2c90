"""Grammars: which tokens an answer may hold next.

``llguidance`` does the work. It compiles JSON schemas and grammars, refuses by name each keyword that it cannot hold
an answer to, and bounds the cost of every step. llama.cpp's own grammar sampler would need llama-cpp-python's schema
converter, which ignores most keywords (``minimum``, ``uniqueItems``, ``not``) and lets raw line breaks into strings;
it walks the whole vocabulary for each refused token, and some grammars end the process.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from llguidance.gbnf_to_lark import gbnf_to_lark

from runtime.errors import UnsupportedGrammar
from runtime.generation import Grammar, GrammarKind
from runtime.llama.model import Model

MAX_DEPTH: Final = 64
"""Objects and lists inside each other, in a schema; llguidance's own reader ends at 128."""
MAX_REPETITIONS: Final = 100_000
"""The most repetitions of an item, a character or a property that a schema may ask for."""
_COUNTS: Final = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_JSON_OPTIONS: Final[Mapping[str, Any]] = {
    # As much as a pretty printer writes; without a bound models run away in white space.
    "whitespace_pattern": r"( |\n[ \t]{0,20})?",
    # A keyword that is not enforced is an error, and ``oneOf`` is not taken for ``anyOf``.
    "lenient": False,
    "coerce_one_of": False,
    "item_separator": ",",
    "key_separator": ":",
}
_LIMITS: Final = LLParserLimits(
    # A tenth to a half of llguidance's defaults: compiling takes well under a second, a step a few milliseconds.
    max_items_in_row=2000,
    initial_lexer_fuel=500_000,
    step_lexer_fuel=100_000,
    step_max_items=25_000,
    max_lexer_states=50_000,
    max_grammar_size=100_000,
    verbose_errors=False,
)
_NOTHING_MATCHES: Final = "no text matches it"
_SPECIAL: Final = b"\xff"
"""llguidance's mark of a token that stands for no text."""


class GrammarCompiler:
    """Compiles grammars for one vocabulary. Any thread, one at a time."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._tokenizer: LLTokenizer | None = None

    def compile(self, grammar: Grammar) -> GrammarMatcher:
        """The grammar, ready for one answer. The first call reads the vocabulary: 2 s for 256,000 tokens.

        Raises:
            UnsupportedGrammar: it cannot be enforced; the message names the keyword or the place.
        """
        source = _schema_source(grammar.text) if grammar.kind is GrammarKind.JSON_SCHEMA else _gbnf_source(grammar.text)
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = _make_tokenizer(self._model)
            matcher = LLMatcher(self._tokenizer, source, log_level=0, limits=_LIMITS)
        result = GrammarMatcher(matcher, self._model)
        result.check()
        return result


class GrammarMatcher:
    """What one answer has matched so far."""

    def __init__(self, matcher: LLMatcher, model: Model) -> None:
        self._matcher = matcher
        self._model = model

    def check(self) -> None:
        """Make sure that something can follow.

        Raises:
            UnsupportedGrammar: the grammar has an error, is too complex, or is matched by no text at all.
        """
        if self._matcher.is_error():
            raise UnsupportedGrammar(_words(self._matcher.get_error()))
        if not len(self.allowed()):
            raise UnsupportedGrammar(_NOTHING_MATCHES)

    @property
    def is_complete(self) -> bool:
        """Whether the answer matches and nothing can follow."""
        return bool(self._matcher.is_stopped() and self._matcher.is_accepting() and not self._matcher.is_error())

    def allows(self, token: int) -> bool:
        """Whether ``token`` may come next; tokens that end an answer may once the answer matches."""
        if self._model.is_end(token):
            return bool(self._matcher.is_accepting())
        return not self._model.is_control(token) and bool(self._matcher.validate_tokens([token]) == 1)

    def allowed(self) -> npt.NDArray[np.int64]:
        """All tokens that may come next, ascending: int64 ``[n]``, n at least 1.

        Raises:
            UnsupportedGrammar: the grammar turned out too complex at this place.
        """
        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), np.uint8), bitorder="little")
        if self._matcher.is_error():
            raise UnsupportedGrammar(_words(self._matcher.get_error()))
        return np.flatnonzero(bits[: self._model.n_vocab])

    def accept(self, token: int) -> None:
        """Note that an allowed token came next.

        Raises:
            UnsupportedGrammar: the grammar turned out too complex at this place.
        """
        if not self._model.is_end(token) and not self._matcher.consume_token(token):
            raise UnsupportedGrammar(_words(self._matcher.get_error()))


class _Vocabulary(NamedTuple):
    """A model's vocabulary in the form that llguidance reads."""

    model: Model
    tokens: list[bytes]
    eos_token_id: int
    bos_token_id: int | None = None
    special_token_ids: tuple[int, ...] = ()

    def __call__(self, text: bytes) -> list[int]:
        """The tokens of a text."""
        return self.model.tokenize_bytes(text)


def _make_tokenizer(model: Model) -> LLTokenizer:
    tokens = [
        _SPECIAL + model.name(token) if model.is_control(token) else model.piece(token)
        for token in range(model.n_vocab)
    ]
    ends = list(model.end_tokens)
    return LLTokenizer(TokenizerWrapper(_Vocabulary(model, tokens, ends[0])), eos_token=ends)


def _schema_source(text: str) -> str:
    """A JSON schema in llguidance's form, within our limits."""
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError):
        raise UnsupportedGrammar("the schema is not JSON") from None
    _check_schema(schema)
    if schema is False:
        raise UnsupportedGrammar(_NOTHING_MATCHES)
    text = "{}" if schema is True else text
    try:
        return str(LLMatcher.grammar_from_json_schema(text, overrides=dict(_JSON_OPTIONS)))  # type: ignore[arg-type]
    except ValueError as error:
        raise UnsupportedGrammar(_words(str(error))) from None


def _check_schema(schema: Any) -> None:
    """Walk the schema without recursion.

    Raises:
        UnsupportedGrammar: deeper, or with more repetitions, than is allowed.
    """
    level = [schema]
    for _ in range(MAX_DEPTH):
        counts = [(keyword, item.get(keyword)) for item in level if isinstance(item, dict) for keyword in _COUNTS]
        for keyword, count in counts:
            if isinstance(count, int | float) and count > MAX_REPETITIONS:
                raise UnsupportedGrammar(f"{keyword} may be {MAX_REPETITIONS} at most")
        inner = [item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list)]
        level = [child for children in inner for child in children]
        if not level:
            return
    raise UnsupportedGrammar(f"the schema is nested more than {MAX_DEPTH} deep")


def _gbnf_source(text: str) -> str:
    """A grammar in llama.cpp's notation, in llguidance's form."""
    try:
        return str(LLMatcher.grammar_from_lark(gbnf_to_lark(text)))
    except RecursionError:
        raise UnsupportedGrammar("the grammar is nested too deeply") from None
    except Exception as error:  # noqa: BLE001 - gbnf_to_lark raises bare Exceptions; each refuses the text
        raise UnsupportedGrammar(_words(str(error))) from None


def _words(message: str) -> str:
    """Llguidance's reason in one line. ``NoExtension`` is its name for a place where no token fits."""
    line = (message.strip().splitlines() or ["it cannot be enforced"])[0].removesuffix(" <non-verbose/>")
    return _NOTHING_MATCHES if line.startswith("NoExtension") else line[:300]
