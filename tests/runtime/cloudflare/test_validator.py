"""The validator against outcomes of Cloudflare's own.

``data/recorded.jsonl.gz`` holds 6,000 generated bodies and what npm ``@cloudflare/cabidela`` 0.2.4 made of them on the
model's schema (``applyDefaults``, ``errorMessages``; Node 22.23.3): a first line with the distinct outcomes, then one
``[outcome, body]`` a line. ``ok {...}`` shows the defaults it added; ``{"$repeat": [text, n]}`` stands for a long text.
"""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.cloudflare.validator import validate
from runtime.cloudflare.wire import SCHEMA, parse_run
from runtime.errors import InvalidRequest

DATA = Path(__file__).parent / "data"
VECTORS = json.loads((DATA / "validation.json").read_text(encoding="utf-8"))


def expand(value: Any) -> Any:
    """The body with its long texts written out."""
    if isinstance(value, dict):
        if "$repeat" in value:
            text, count = value["$repeat"]
            return text * count
        return {key: expand(item) for key, item in value.items()}
    return [expand(item) for item in value] if isinstance(value, list) else value


def outcome(body: Any) -> str | dict[str, Any]:
    """The error's text, or the values."""
    try:
        return validate(body, SCHEMA["input"]).values
    except InvalidRequest as error:
        return str(error)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_vector(vector: dict[str, Any]) -> None:
    """A hand-made body gets the recorded text, or the recorded values with their defaults."""
    assert outcome(expand(vector["body"])) == (vector["error"] or vector["values"])


def test_recorded_bodies() -> None:
    """Every generated body gets the outcome that Cloudflare's validator gave it."""
    with gzip.open(DATA / "recorded.jsonl.gz", "rt", encoding="utf-8") as file:
        outcomes = json.loads(next(file))["outcomes"]
        cases = [json.loads(line) for line in file]
    assert len(cases) >= 5000
    for index, shown in cases:
        body, recorded = expand(shown), outcomes[index]
        expected = body | json.loads(recorded[3:]) if recorded.startswith("ok ") else recorded
        assert outcome(body) == expected, shown


KEYS = st.sampled_from([*SCHEMA["input"]["oneOf"][0]["properties"], "messages", "role", "content", "0", "stop"])
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec=None), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=12,
)


@settings(max_examples=500, deadline=None)
@given(st.dictionaries(KEYS, JSON, max_size=6) | JSON)
def test_any_json_is_parsed_or_refused(body: Any) -> None:
    """Whatever comes is either an input with all its values in range, or an InvalidRequest; nothing else escapes."""
    try:
        run_input = parse_run(json.dumps(body).encode())
    except InvalidRequest:
        return
    assert (run_input.prompt is None) != (run_input.messages is None)
    assert run_input.max_tokens >= 0
    assert 0 <= run_input.sampling.temperature <= 5


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=40))
def test_any_bytes_are_parsed_or_refused(body: bytes) -> None:
    """Bytes that are not JSON are an InvalidRequest, and no other error."""
    with pytest.raises(InvalidRequest):
        parse_run(body)
