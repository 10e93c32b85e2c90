"""Structured output: the ways to ask for it -> a Grammar. Pure.

Sources: OpenAI's guide "Structured model outputs"; Workers AI's "JSON Mode", whose ``json_schema`` is the schema
itself; llama-server's ``grammar`` and ``json_schema``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from runtime.chat.fields import check_unicode
from runtime.errors import InvalidParameter
from runtime.generation import MAX_GRAMMAR_CHARACTERS, Grammar, GrammarKind

_ANY_OBJECT: Final = Grammar(GrammarKind.JSON_SCHEMA, '{"type":"object"}')
_PARAMS: Final = ("response_format", "json_schema", "grammar")


@dataclass(frozen=True, slots=True)
class Structure:
    """What an answer has to match, and the key that asked for it."""

    grammar: Grammar
    param: str


def parse_structure(body: Mapping[str, Any]) -> Structure | None:
    """What the body's ``response_format``, ``json_schema`` or ``grammar`` asks for.

    Raises:
        InvalidParameter: more than one of them asks for something, or one has another form.
    """
    asked = [(param, _parse(param, body[param])) for param in _PARAMS if body.get(param) is not None]
    found = [Structure(grammar, param) for param, grammar in asked if grammar is not None]
    if len(found) > 1:
        raise InvalidParameter(f"{found[0].param} and {found[1].param} exclude each other", found[1].param)
    return found[0] if found else None


def parse_format(value: Any, param: str) -> Grammar | None:
    """The value of ``response_format``, or of ``text.format`` of the Responses API, whose schema lies one step higher.

    Raises:
        InvalidParameter: it has another form.
    """
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        # llama-server takes a schema here.
        return _ANY_OBJECT if value.get("schema") is None else schema_grammar(value["schema"], f"{param}.schema")
    if kind != "json_schema":
        raise InvalidParameter(f"{param}.type must be text, json_object or json_schema", param)
    inner = value.get("json_schema")
    if inner is None:
        inner = {key: item for key, item in value.items() if key != "type"}
    if not isinstance(inner, dict):
        raise InvalidParameter(f"{param}.json_schema must be an object", param)
    # OpenAI names its schema; Workers AI gives it bare. A property called "schema" stands under "properties".
    is_named = "schema" in inner and isinstance(inner["schema"], dict | bool) and "properties" not in inner
    return schema_grammar(inner["schema"] if is_named else inner, param)


def schema_grammar(schema: Any, param: str) -> Grammar:
    """A JSON schema as a grammar.

    Raises:
        InvalidParameter: not a schema, or too long.
    """
    if not isinstance(schema, dict | bool):
        raise InvalidParameter(f"{param} must be a JSON schema", param)
    return _grammar(GrammarKind.JSON_SCHEMA, json.dumps(schema, separators=(",", ":")), param)


def _parse(param: str, value: Any) -> Grammar | None:
    if param == "response_format":
        return parse_format(value, param)
    if param == "json_schema":
        return schema_grammar(value, param)
    if not isinstance(value, str):
        raise InvalidParameter(f"{param} must be a string in llama.cpp's grammar notation", param)
    check_unicode(param, value)
    return _grammar(GrammarKind.GBNF, value, param) if value.strip() else None


def _grammar(kind: GrammarKind, text: str, param: str) -> Grammar:
    if len(text) > MAX_GRAMMAR_CHARACTERS:
        raise InvalidParameter(f"{param} may have {MAX_GRAMMAR_CHARACTERS} characters at most", param)
    return Grammar(kind, text)
