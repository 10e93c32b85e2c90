"""The JSON of the admin API: pure functions from values to values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final

from runtime.adapters.views import AdapterView
from runtime.errors import InvalidRequest

_ETAG: Final = re.compile(r'"([0-9a-f]{64})"')
_SHA256: Final = re.compile(r"[0-9a-fA-F]{64}")


def render_adapter(view: AdapterView, resident: frozenset[str]) -> dict[str, Any]:
    """One adapter; ``resident`` are the digests whose weights sit in a lane."""
    replacement = view.replacement
    return {
        "id": view.id,
        "name": view.name,
        "state": view.state.value,
        "reason": view.reason or None,
        "warnings": list(view.warnings),
        "digest": view.digest,
        "bytes": view.size_bytes,
        "rank": view.rank,
        "source": view.adapter.source.value,
        "location": view.adapter.location or None,
        "created_at": _time(view.adapter.created_at),
        "modified_at": _time(view.modified_at),
        "hits": view.n_uses,
        "last_used_at": None if view.last_used_at is None else _time(view.last_used_at),
        "pinned": view.is_pinned,
        "in_lane": view.digest in resident,
        "replacement": None
        if replacement is None
        else {"state": replacement.state.value, "reason": replacement.reason or None, "digest": replacement.digest},
    }


def render_list(views: Iterable[AdapterView], resident: frozenset[str], limits: Mapping[str, int]) -> dict[str, Any]:
    """Every adapter, and what may be kept."""
    return {"adapters": [render_adapter(view, resident) for view in views], "limits": dict(limits)}


def render_llama_server(views: Iterable[AdapterView]) -> list[dict[str, Any]]:
    """llama-server's list. ``path`` is the name, since clients see no server paths; no scale is global."""
    return [{"id": index, "path": view.name, "scale": 0.0} for index, view in enumerate(views)]


def parse_pin(body: Mapping[str, Any]) -> bool:
    """The one thing that a PATCH can change.

    Raises:
        InvalidRequest: it is something else.
    """
    if set(body) != {"pinned"} or not isinstance(body["pinned"], bool):
        raise InvalidRequest('the body must be {"pinned": true} or {"pinned": false}')
    return body["pinned"]


def parse_text(body: Mapping[str, Any], *names: str) -> tuple[str, ...]:
    """Fields that must be there and be text.

    Raises:
        InvalidRequest: one is not.
    """
    for name in names:
        if not isinstance(body.get(name), str) or not body[name]:
            raise InvalidRequest(f"{name} must be a string that is not empty")
    return tuple(body[name] for name in names)


def parse_if_match(headers: Mapping[str, str]) -> str | None:
    """The digest that a change is meant for; None: any content.

    Raises:
        InvalidRequest: If-Match is neither ``*`` nor a digest in quotes.
    """
    value = headers.get("If-Match", "*").strip()
    if value == "*":
        return None
    match = _ETAG.fullmatch(value)
    if match is None:
        raise InvalidRequest('If-Match must be * or the digest in quotes, as the ETag says: "64 hexadecimal digits"')
    return match[1]


def parse_if_none_match(headers: Mapping[str, str]) -> bool:
    """Whether the adapter must be new.

    Raises:
        InvalidRequest: If-None-Match is there and not ``*``.
    """
    value = headers.get("If-None-Match")
    if value not in (None, "*"):
        raise InvalidRequest("If-None-Match must be *, which adds an adapter and never replaces one")
    return value == "*"


def parse_sha256(text: str | None) -> str | None:
    """A SHA-256 that a client sent along, in lower case.

    Raises:
        InvalidRequest: it is not 64 hexadecimal digits.
    """
    if text is not None and not _SHA256.fullmatch(text):
        raise InvalidRequest("sha256 must be 64 hexadecimal digits")
    return text and text.lower()


def _time(moment: datetime) -> str:
    """RFC 3339, in UTC, to the microsecond."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
