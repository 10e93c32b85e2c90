"""Bytes of a body -> a JSON value, as strict as JavaScript's ``JSON.parse``, and back. Pure."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from runtime.errors import InvalidRequest, MissingBody, RequestTooLarge

MAX_COLONS, MAX_COMMAS = 100_000, 500_000
"""A body with more of these is not parsed: that would stop all streams. 3 MB of text have some 50,000 commas, 4 MB of
JSON inside a text some 90,000 colons; each member of an object needs a colon, each item of a list a comma."""
_MAX_EXACT_DIGITS = 400
"""Past this many digits a whole number is infinite as a double (1.8e308); Python alone would keep or refuse it."""


def parse_json(body: bytes) -> Any:
    """The JSON value that ``body`` is, regardless of its content type.

    Raises:
        MissingBody: nothing came.
        RequestTooLarge: more members or items than any request has.
        InvalidRequest: not UTF-8, not JSON, or nested deeper than any request is.
    """
    if not body.strip():
        raise MissingBody("the request has no body; send a JSON object")
    if body.count(b":") > MAX_COLONS or body.count(b",") > MAX_COMMAS:
        raise RequestTooLarge(f"a body may hold {MAX_COLONS} colons and {MAX_COMMAS} commas at most")
    try:
        return json.loads(body.decode("utf-8-sig"), parse_int=_parse_int, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from None


def parse_json_object(body: bytes) -> dict[str, Any]:
    """As ``parse_json``, for bodies that must be an object.

    Raises:
        InvalidRequest: it is some other value; or as ``parse_json``.
    """
    value = parse_json(body)
    if not isinstance(value, dict):
        raise InvalidRequest(f"the body must be a JSON object, not {type(value).__name__}")
    return value


def render_json(value: Any) -> bytes:
    """Compact UTF-8 JSON, keys in the order given; half a surrogate pair is escaped, as JavaScript does."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode(errors="backslashreplace")


def _parse_int(digits: str) -> int | float:
    return int(digits) if len(digits) <= _MAX_EXACT_DIGITS else float(digits)


def _refuse_constant(name: str) -> NoReturn:
    raise json.JSONDecodeError(f"{name} is not a JSON value", "", 0)
