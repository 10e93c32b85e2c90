"""Grammars over the tiny Gemma's vocabulary."""

import json
import random
from typing import Any

import pytest

from runtime.errors import UnsupportedGrammar
from runtime.generation import Grammar, GrammarKind
from runtime.llama.grammar import MAX_DEPTH, MAX_REPETITIONS, GrammarCompiler, GrammarMatcher
from runtime.llama.model import Model

INTEGER = {"type": "integer", "minimum": 3, "maximum": 12}


@pytest.fixture(scope="module")
def compiler(model: Model) -> GrammarCompiler:
    """One vocabulary, read once."""
    return GrammarCompiler(model)


def schema(value: Any) -> Grammar:
    """A JSON schema."""
    return Grammar(GrammarKind.JSON_SCHEMA, json.dumps(value))


def gbnf(text: str) -> Grammar:
    """A grammar in llama.cpp's notation."""
    return Grammar(GrammarKind.GBNF, text)


def write(model: Model, matcher: GrammarMatcher, seed: int) -> str:
    """A random text that the grammar allows, to its end; whitespace and strings end soon."""
    draw, text = random.Random(seed), b""
    while not matcher.is_complete:
        allowed = [int(token) for token in matcher.allowed()]
        assert all(map(matcher.allows, allowed[:50])), "both ways to ask agree"
        ends = [token for token in allowed if model.is_end(token)]
        closing = [token for token in allowed if model.piece(token) in (b'"', b"}", b"]")]
        token = draw.choice(ends or (closing if closing and draw.random() < 0.5 else allowed))
        matcher.accept(token)
        if model.is_end(token):
            break
        text += model.piece(token)
    return text.decode()


def test_a_schema_is_kept(model: Model, compiler: GrammarCompiler) -> None:
    """Any choice among the allowed tokens gives a number within the schema's limits."""
    seen = {json.loads(write(model, compiler.compile(schema(INTEGER)), seed)) for seed in range(50)}
    assert {3, 12} < seen <= set(range(3, 13))


def test_refused_tokens(model: Model, compiler: GrammarCompiler) -> None:
    """Control tokens never stand in an answer, and it ends only where it is whole."""
    matcher = compiler.compile(schema({"type": "object", "properties": {}, "additionalProperties": False}))
    control = next(token for token in range(model.n_vocab) if model.is_control(token) and not model.is_end(token))
    assert not matcher.allows(control)
    assert not any(map(matcher.allows, model.end_tokens))
    for piece in (b"{", b"}"):
        matcher.accept(next(token for token in range(model.n_vocab) if model.piece(token) == piece))
    assert matcher.is_complete
    assert all(map(matcher.allows, model.end_tokens))


def test_line_breaks_in_strings_are_escaped(model: Model, compiler: GrammarCompiler) -> None:
    """A raw control character inside a string would be no JSON."""
    matcher = compiler.compile(schema({"type": "string"}))
    matcher.accept(next(token for token in range(model.n_vocab) if model.piece(token) == b'"'))
    assert not any(b"\n" in model.piece(int(token)) for token in matcher.allowed())


def test_gbnf(model: Model, compiler: GrammarCompiler) -> None:
    """llama.cpp's notation, with repetitions and classes."""
    for seed in range(20):
        matcher = compiler.compile(gbnf('root ::= ("yes" | "no") ws [a-c]{2}\nws ::= " "?'))
        assert write(model, matcher, seed).replace(" ", "")[-2:] <= "cc"


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        (schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (schema({"type": "string", "not": {"const": "a"}}), "not"),
        (schema({"properties": {"a": {"type": "array", "contains": {}}}}), "contains"),
        (schema({"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 2}]}), "oneOf"),
        (schema({"type": "string", "format": "unheard-of"}), "unheard-of"),
        (schema({"type": "string", "pattern": "(?=a)"}), "regex"),
        (schema({"$ref": "https://example.com/schema"}), "example.com"),
        (schema({"$ref": "#/$defs/missing"}), "missing"),
        (schema({"enum": []}), "Unsatisfiable"),
        (schema(False), "no text matches"),
        (schema({"$ref": "#"}), "no text matches"),
        (schema({"type": "string", "minLength": MAX_REPETITIONS + 1}), "minLength"),
        (schema({"uniqueItems": True, "x-guidance": {"lenient": True}}), "uniqueItems"),
        (schema(5), "schema"),
        (Grammar(GrammarKind.JSON_SCHEMA, "{"), "not JSON"),
        (Grammar(GrammarKind.JSON_SCHEMA, "[" * 60_000), "not JSON"),
        (gbnf('rot ::= "a"'), "root"),
        (gbnf("root ::= other"), "other"),
        (gbnf('root ::= "a'), "end of input"),
        (gbnf("root ::= " + "(" * 20_000 + '"a"' + ")" * 20_000), "nested too deeply"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_enforced_is_refused(compiler: GrammarCompiler, grammar: Grammar, words: str) -> None:
    """The refusal names the keyword or the place; an answer is never free text instead."""
    with pytest.raises(UnsupportedGrammar, match=words):
        compiler.compile(grammar)


def test_deep_schemas_are_refused(compiler: GrammarCompiler) -> None:
    """A schema at the limit of depth is compiled, and one level more is refused."""
    nested: dict[str, Any] = {}
    for _ in range(MAX_DEPTH // 2):
        nested = {"items": nested} if nested else {"type": "array"}
    compiler.compile(schema(nested))
    for _ in range(MAX_DEPTH):
        nested = {"items": nested}
    with pytest.raises(UnsupportedGrammar, match=f"more than {MAX_DEPTH} deep"):
        compiler.compile(schema(nested))


def test_a_grammar_that_grows_too_complex_is_refused_on_the_way(model: Model, compiler: GrammarCompiler) -> None:
    """The cost of a step is bounded: past the bound the answer fails, and goes on with nothing."""
    matcher = compiler.compile(schema({"type": "string", "pattern": "^(([a-z]{1,60}[0-9]?){1,60}x){1,60}$"}))
    with pytest.raises(UnsupportedGrammar):
        write(model, matcher, 1)
