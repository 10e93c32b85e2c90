"""What a request says about adapters (its ``lora``), as terms of a blend. Pure.

A string::

    pirate                    one adapter, by its name or id
    pirate:0.7                the same with a scale
    pirate:0.5+shout:0.5      a blend; a term without a scale has the scale 1

A list: ``[{"name": "pirate", "scale": 0.5}, {"id": "6f0f8f3e-...", "scale": 0.5}]``. A name that holds ``:`` or ``+``
needs the list, or the adapter's id. White space belongs to names, so none is removed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from runtime.errors import InvalidRequest
from runtime.generation import MAX_SCALE, Blend, BlendMember

MAX_TERMS: Final = 16
"""A lane of the default rank 32 has room for four adapters of rank 8; 16 of rank 2."""
_SEPARATOR: Final = "+"
_SCALE_MARK: Final = ":"
# No sign "+", which separates terms, and none of the other spellings that float() reads ("nan", "1_0", other digits).
_SCALE: Final = re.compile(r"-?([0-9]{1,20}(\.[0-9]{0,40})?|\.[0-9]{1,40})([eE]-?[0-9]{1,3})?")
_MAX_SHOWN: Final = 200
_RESERVED: Final = f"a name that holds {_SCALE_MARK!r} or {_SEPARATOR!r} needs the adapter's id, or a list"


@dataclass(frozen=True, slots=True)
class BlendTerm:
    """One adapter of a request, by name or id, and the factor on its change; the scale is within its range."""

    adapter: str
    scale: float = 1.0


def parse_lora(value: Any) -> tuple[BlendTerm, ...]:
    """The terms that a JSON value names; none for the base model, which ``null``, ``""`` and ``[]`` stand for.

    Raises:
        InvalidRequest: the value is neither a string nor a list of objects, a name is missing, a scale is not a number
            or out of its range, or there are more than ``MAX_TERMS`` terms.
    """
    if value is None or value == "":
        return ()
    if not isinstance(value, str | list):
        raise InvalidRequest("lora must be a string or a list of objects")
    items = value.split(_SEPARATOR, MAX_TERMS) if isinstance(value, str) else value
    if len(items) > MAX_TERMS:
        raise InvalidRequest(f"lora names more than {MAX_TERMS} adapters")
    return tuple(map(_parse_text if isinstance(value, str) else _parse_object, items))


def blend_of(terms: Sequence[BlendTerm], digest_of: Callable[[str], str]) -> Blend:
    """The blend of these terms. A term of scale 0 changes nothing and is left out once its adapter is found.

    Args:
        terms: what ``parse_lora`` gave.
        digest_of: gives the content digest of an adapter by name or id, or raises an AdapterError.

    Raises:
        AdapterError: as ``digest_of`` raises it.
        InvalidRequest: two terms have the same weights.
    """
    members: dict[str, BlendMember] = {}
    for term in terms:
        digest = digest_of(term.adapter)
        if digest in members:
            raise InvalidRequest(f"lora names the weights of {term.adapter[:_MAX_SHOWN]!r} twice; add up their scales")
        members[digest] = BlendMember(digest, term.scale, term.adapter)
    return Blend(tuple(member for member in members.values() if member.scale))


def is_plain_name(name: str) -> bool:
    """Whether a string may name the adapter of this name, so that no list or id is needed."""
    return bool(name) and _SCALE_MARK not in name and _SEPARATOR not in name


def _parse_text(text: str) -> BlendTerm:
    name, mark, scale = text.partition(_SCALE_MARK)
    if not name:
        raise InvalidRequest(f"lora: a name is missing in {text[:_MAX_SHOWN]!r}; {_RESERVED}")
    if not mark:
        return BlendTerm(name)
    if not _SCALE.fullmatch(scale):
        raise InvalidRequest(f"lora: {scale[:_MAX_SHOWN]!r} is not a scale; {_RESERVED}; in a URL write + as %2B")
    return BlendTerm(name, _scale(float(scale)))


def _parse_object(item: Any) -> BlendTerm:
    if not isinstance(item, dict) or not set(item) <= {"name", "id", "scale"}:
        raise InvalidRequest('each item of lora must be an object of "name" or "id", and "scale"')
    keys = [item[key] for key in ("name", "id") if item.get(key) is not None]
    if len(keys) != 1 or not isinstance(keys[0], str) or not keys[0]:
        raise InvalidRequest('each item of lora must have either a "name" or an "id", which is a string')
    scale = item.get("scale")
    if scale is None:
        return BlendTerm(keys[0])
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        raise InvalidRequest("the scale of an adapter must be a number")
    return BlendTerm(keys[0], _scale(scale))


def _scale(value: float) -> float:
    if not -MAX_SCALE <= value <= MAX_SCALE:  # false for NaN too
        raise InvalidRequest(f"the scale of an adapter must be between {-MAX_SCALE} and {MAX_SCALE}, not {value}")
    return float(value)
