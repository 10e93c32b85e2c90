"""The lines of the pipe between the web process and the engine: a message as one JSON object, and back.

Lines are ASCII (every other character is escaped), so no text can break the framing.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Callable
from enum import Enum
from typing import Any

from runtime.messages import Message

_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in typing.get_args(Message)}


def encode(message: Message) -> bytes:
    """One line of ASCII JSON with its newline; the key ``is`` names the class, and bytes are hexadecimal."""
    fields = {"is": type(message).__name__, **_fields_of(message)}
    return _ENCODER.encode(fields).encode("ascii") + b"\n"


@functools.cache
def _field_names(kind: Any) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


def _fields_of(value: Any) -> dict[str, Any]:
    kind: Any = type(value)
    return {name: getattr(value, name) for name in _field_names(kind)}


def _plain(value: Any) -> Any:
    """Encode what JSON has no form for: bytes, and values inside a message."""
    return value.hex() if isinstance(value, bytes) else _fields_of(value)


_ENCODER = json.JSONEncoder(separators=(",", ":"), default=_plain)


def decode(line: bytes | str) -> Message:
    """The message a line holds.

    Raises:
        ValueError: the line is not a message: bad JSON, an unknown kind, a missing key, or a value out of its range.
    """
    try:
        fields = json.loads(line)
        kind: Any = _KINDS[fields.pop("is")]
        return typing.cast(Message, _reader(kind)(fields))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a message: {line[:200]!r}") from error


def _same(value: Any) -> Any:
    return value


@functools.cache
def _reader(annotation: Any) -> Callable[[Any], Any]:
    """The function that turns a value of JSON into the type that ``annotation`` names."""
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return _value_reader(annotation)
    if typing.get_origin(annotation) is tuple:
        return _tuple_reader(*typing.get_args(annotation))
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        (inner,) = (option for option in typing.get_args(annotation) if option is not type(None))
        read = _reader(inner)
        return lambda value: None if value is None else read(value)
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return annotation
    return bytes.fromhex if annotation is bytes else _same


def _value_reader(kind: Any) -> Callable[[Any], Any]:
    readers = {name: _reader(hint) for name, hint in typing.get_type_hints(kind).items()}
    return lambda value: kind(**{name: readers[name](item) for name, item in value.items()})


def _tuple_reader(*item_types: Any) -> Callable[[Any], Any]:
    readers = [_reader(item_type) for item_type in item_types if item_type is not Ellipsis]
    if item_types[-1] is Ellipsis:
        return lambda value: tuple(map(readers[0], value))
    return lambda value: tuple(read(item) for read, item in zip(readers, value, strict=True))
