"""The request validator of Workers AI, with its exact wording, driven by the model's own schema.

Knows JSON Schema as far as ``schema.json`` uses it, and nothing of requests or HTTP. Its quirks are the contract's:
they are those of npm ``@cloudflare/cabidela`` 0.2.4 (measured; the recorded outcomes are in the tests).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from runtime.errors import InvalidRequest

Schema = Mapping[str, Any]
Path = tuple[str, ...]

_ABSENT: Final = object()
_MAX_ARRAY_INDEX: Final = 2**32 - 2  # ECMAScript: larger integer keys keep their place among the others


@dataclass(frozen=True, slots=True)
class Validated:
    """A body that fits: its values with the schema's defaults, and the required key of the branch that matched."""

    branch: str
    values: dict[str, Any]


class _Mismatch(Exception):
    """Why one branch does not fit."""


def validate(body: Any, schema: Schema) -> Validated:
    """The one branch of ``schema['oneOf']`` that ``body`` (any JSON value) fits.

    Raises:
        InvalidRequest: no branch fits, or more than one; the text is the contract's, byte for byte.
    """
    matches: list[Schema] = []
    failures: dict[str, None] = {}  # a set that keeps its order
    for branch in schema["oneOf"]:
        try:
            _check_object(branch, body, ())
        except _Mismatch as mismatch:
            failures[str(mismatch)] = None
        else:
            matches.append(branch)
    if len(matches) != 1:
        tail = ": " + ", ".join(failures) if not matches else ""
        raise InvalidRequest(f"oneOf at '/' not met, {len(matches)} matches{tail}")
    (branch,) = matches
    defaults = {name: rule["default"] for name, rule in branch["properties"].items() if "default" in rule}
    return Validated(branch=branch["required"][0], values=defaults | body)


def type_names(value: Any) -> list[str]:
    """The validator's names for the type of a JSON value; integral numbers have two, some arrays as well."""
    match value:
        case None:
            return ["null"]
        case bool():
            return ["boolean"]
        case str():
            return ["string"]
        case int():
            return ["number", "integer"]
        case float():
            return ["number", "integer"] if value.is_integer() else ["number"]
        case list():
            return ["array", "binary"] if _is_binary(value) else ["array"]
        case _:
            return ["object"]


def type_mismatch(name: str, expected: str, value: Any) -> str:
    """The contract's text for a top-level key of the wrong type."""
    return _type_mismatch((name,), expected, value)


def _check(rule: Schema, value: Any, path: Path) -> bool:
    """Whether ``value`` is there; if it is, it is checked.

    Raises:
        _Mismatch: it is there and does not fit.
    """
    is_seen_whole = isinstance(value, str) or (isinstance(value, list) and _is_binary(value))
    if rule["type"] == "array" and not is_seen_whole:
        return sum(_check(rule["items"], item, (*path, key)) for key, item in _items(value)) > 0
    if rule["type"] == "object":
        return _check_object(rule, value, path)
    if value is _ABSENT:
        return False
    if rule["type"] not in type_names(value):
        raise _Mismatch(_type_mismatch(path, rule["type"], value))
    if isinstance(value, str):
        _check_length(rule, value, path)
    elif not isinstance(value, list):
        _check_range(rule, value, path)
    return True


def _check_object(rule: Schema, value: Any, path: Path) -> bool:
    """Properties in the schema's order, then what is required; anything but an object has no properties."""
    fields = value if isinstance(value, dict) else {}
    present = {
        name for name, inner in rule["properties"].items() if _check(inner, fields.get(name, _ABSENT), (*path, name))
    }
    if not present.issuperset(rule["required"]):
        raise _Mismatch(f"required properties at '{_pointer(path)}' are '{','.join(rule['required'])}'")
    return True


def _check_length(rule: Schema, text: str, path: Path) -> None:
    """Lengths are counted in UTF-16 code units, as JavaScript does."""
    n_units = len(text.encode("utf-16-le", "surrogatepass")) // 2
    if n_units > rule.get("maxLength", n_units):
        raise _Mismatch(f"Length of '{_pointer(path)}' must be <= {rule['maxLength']}")
    if n_units < rule.get("minLength", n_units):
        raise _Mismatch(f"Length of '{_pointer(path)}' must be >= {rule['minLength']} not met")


def _check_range(rule: Schema, number: float, path: Path) -> None:
    if number < rule.get("minimum", number):
        raise _Mismatch(f"'{_pointer(path)}' must be >= {rule['minimum']}")
    if number > rule.get("maximum", number):
        raise _Mismatch(f"'{_pointer(path)}' must be <= {rule['maximum']}")


def _is_binary(items: list[Any]) -> bool:
    """Whether the original takes a list for bytes: all items are text or numbers, up to the first null."""
    for item in items:
        if isinstance(item, bool) or not isinstance(item, str | int | float):
            return item is None
    return True


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    """What JavaScript's ``for in`` walks through: a list's indices or an object's keys."""
    if isinstance(value, list):
        yield from ((str(index), item) for index, item in enumerate(value))
    elif isinstance(value, dict):
        indices = sorted((key for key in value if _is_array_index(key)), key=int)
        yield from ((key, value[key]) for key in indices)
        yield from ((key, item) for key, item in value.items() if not _is_array_index(key))


def _is_array_index(key: str) -> bool:
    if not (key.isascii() and key.isdecimal() and len(key) <= 10):
        return False
    return str(int(key)) == key and int(key) <= _MAX_ARRAY_INDEX


def _type_mismatch(path: Path, expected: str, value: Any) -> str:
    names = ",".join(f"'{name}'" for name in type_names(value))
    return f"Type mismatch of '{_pointer(path)}', '{expected}' not in {names}"


def _pointer(path: Path) -> str:
    return "".join(f"/{part}" for part in path) or "/"
