"""Kinds of values in a request body: each reads a JSON value and describes itself as JSON Schema. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from runtime.errors import InvalidParameter

Read = Callable[[str, Any], Any]


@dataclass(frozen=True, slots=True)
class Field:
    """One key of a body. ``read(name, value)`` gives the value or raises InvalidParameter; a null never comes to it."""

    read: Read
    schema: Mapping[str, Any]


def number(low: float, high: float) -> Field:
    """A finite number within ``low..high``."""

    def read(name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise InvalidParameter(f"{name} must be a number between {low} and {high}", name)
        return float(value)

    return Field(read, {"type": ["number", "null"], "minimum": low, "maximum": high})


def integer(low: int | None = None, high: int | None = None) -> Field:
    """A whole number within ``low..high``; ``5.0`` is one."""

    def read(name: str, value: Any) -> int:
        if isinstance(value, float) and math.isfinite(value) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise InvalidParameter(f"{name} must be a whole number", name)
        if (low is not None and value < low) or (high is not None and value > high):
            limits = [f"at least {low}"] if low is not None else []
            limits += [f"at most {high}"] if high is not None else []
            raise InvalidParameter(f"{name} must be {' and '.join(limits)}", name)
        return value

    limits = {name: limit for name, limit in (("minimum", low), ("maximum", high)) if limit is not None}
    return Field(read, {"type": ["integer", "null"], **limits})


def boolean() -> Field:
    """True or false."""
    return _typed(bool, "a boolean", {"type": ["boolean", "null"]})


def text() -> Field:
    """A string."""
    return _typed(str, "a string", {"type": ["string", "null"]})


def record() -> Field:
    """An object."""
    return _typed(dict, "an object", {"type": ["object", "null"]})


def texts(n_most: int, n_characters: int) -> Field:
    """A string or a list of strings, none of them empty; equal ones count once."""

    def read(name: str, value: Any) -> tuple[str, ...]:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list) or len(items) > n_most:
            raise InvalidParameter(f"{name} must be a string or a list of at most {n_most}", name)
        if not all(isinstance(item, str) and 0 < len(item) <= n_characters for item in items):
            raise InvalidParameter(f"each {name} must be a string of 1 to {n_characters} characters", name)
        for item in items:
            check_unicode(name, item)
        return tuple(dict.fromkeys(items))

    item = {"type": "string", "minLength": 1, "maxLength": n_characters}
    return Field(read, {"anyOf": [item, {"type": "array", "items": item, "maxItems": n_most}, {"type": "null"}]})


def check_unicode(name: str, value: str) -> None:
    """Refuse text that has no UTF-8 form.

    Raises:
        InvalidParameter: it holds a lone surrogate.
    """
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidParameter(f"{name} is not valid Unicode at character {error.start}", name) from None


def read_fields(fields: Mapping[str, Field], body: Mapping[str, Any]) -> dict[str, Any]:
    """The values of those ``fields`` that stand in ``body``; null is as good as absent.

    Raises:
        InvalidParameter: a value of the wrong type or out of its range.
    """
    return {name: field.read(name, body[name]) for name, field in fields.items() if body.get(name) is not None}


def _typed(kind: type, words: str, schema: Mapping[str, Any]) -> Field:
    def read(name: str, value: Any) -> Any:
        if not isinstance(value, kind):
            raise InvalidParameter(f"{name} must be {words}", name)
        return value

    return Field(read, schema)
