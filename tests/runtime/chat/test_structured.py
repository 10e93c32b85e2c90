"""The ways to ask for structured output."""

import json
from typing import Any

import pytest

from runtime.chat.structured import Structure, parse_structure
from runtime.errors import InvalidParameter
from runtime.generation import MAX_GRAMMAR_CHARACTERS, Grammar, GrammarKind

SCHEMA: dict[str, Any] = {"type": "object", "properties": {"schema": {"type": "string"}}}


def of_schema(schema: Any, param: str = "response_format") -> Structure:
    """A schema that a key asked for."""
    return Structure(Grammar(GrammarKind.JSON_SCHEMA, json.dumps(schema, separators=(",", ":"))), param)


@pytest.mark.parametrize(
    ("body", "structure"),
    [
        ({}, None),
        ({"response_format": None, "grammar": ""}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, of_schema({"type": "object"})),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, of_schema(SCHEMA)),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
            of_schema(SCHEMA),
        ),
        ({"response_format": {"type": "json_schema", "json_schema": SCHEMA}}, of_schema(SCHEMA)),
        ({"response_format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}, of_schema(SCHEMA)),
        ({"json_schema": SCHEMA}, of_schema(SCHEMA, "json_schema")),
        ({"grammar": 'root ::= "a"'}, Structure(Grammar(GrammarKind.GBNF, 'root ::= "a"'), "grammar")),
    ],
)
def test_forms(body: dict[str, Any], structure: Structure | None) -> None:
    """OpenAI's form, Workers AI's bare schema, the Responses API's flat one, and llama-server's keys."""
    assert parse_structure(body) == structure


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {}}, "response_format"),
        ({"response_format": {"type": "yaml"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": "x"}}, "response_format"),
        ({"response_format": {"type": "json_object", "schema": "x"}}, "response_format.schema"),
        ({"json_schema": []}, "json_schema"),
        ({"grammar": 5}, "grammar"),
        ({"grammar": "\ud800"}, "grammar"),
        ({"grammar": "x" * (MAX_GRAMMAR_CHARACTERS + 1)}, "grammar"),
        ({"grammar": "x", "response_format": {"type": "json_object"}}, "grammar"),
    ],
)
def test_unusable_forms(body: dict[str, Any], param: str) -> None:
    """Each refusal names its key."""
    with pytest.raises(InvalidParameter) as caught:
        parse_structure(body)
    assert caught.value.param == param
