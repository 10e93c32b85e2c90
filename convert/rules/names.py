"""Reads which Gemma a name means, so that an adapter for another Gemma of the same shape is noticed. Pure.

Source: the names of Google's models on the Hugging Face Hub (gemma-7b-it, gemma-1.1-2b-it, codegemma-7b, gemma-2-2b).
"""

import re
from dataclasses import dataclass
from typing import Final

_FAMILY: Final = re.compile(r"(?P<family>[a-z]*)gemma-?(?P<version>\d(?:\.\d)?n?(?=-|$))?")
_SIZE: Final = re.compile(r"(?<![\d.])(?P<size>\d+)b(?![a-z])")
_INSTRUCTED: Final = re.compile(r"-(?:it|instruct)(?=-|$)")


@dataclass(frozen=True, slots=True)
class GemmaName:
    """The parts of a Gemma's name; a part that the name does not have is an empty text."""

    family: str  # "" for Gemma itself, "code", "recurrent", "pali", ...
    version: str
    size: str
    is_instructed: bool


def parse_name(name: str) -> GemmaName | None:
    """Read a model's name, with an organisation or a path in front or not; None if it is not a Gemma's."""
    plain = re.sub(r"[\s_]+", "-", name.strip().lower().rstrip("/").rpartition("/")[2])
    match = _FAMILY.search(plain)
    if match is None:
        return None
    size = _SIZE.search(plain)
    return GemmaName(
        family=match["family"],
        version=match["version"] or "1",
        size=size["size"] if size else "",
        is_instructed=_INSTRUCTED.search(plain) is not None,
    )


def names_differ(made_for: str | None, base: str | None) -> bool:
    """Return whether two names mean different Gemmas; False where a name does not say which."""
    ours, theirs = parse_name(made_for or ""), parse_name(base or "")
    if ours is None or theirs is None:
        return False
    is_other_size = bool(ours.size and theirs.size) and ours.size != theirs.size
    if is_other_size or (ours.family, ours.version) != (theirs.family, theirs.version):
        return True
    return bool(ours.size and theirs.size) and ours.is_instructed != theirs.is_instructed
