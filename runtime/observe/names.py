"""Blends by the names that users know: for the log, and for the bounded label of the metrics."""

from __future__ import annotations

from collections.abc import Callable

from runtime.generation import Blend, BlendMember

BASE_NAME = "base"
BLEND_LABEL = "blend"

NameOf = Callable[[str], str | None]
"""The registered name of a digest, or None."""


def describe(blend: Blend, name_of: NameOf) -> str:
    """``base``, or the adapters with their scales as a request may write them: ``pirate:0.5+shout``."""
    return "+".join(_describe_member(member, name_of) for member in blend.members) or BASE_NAME


def _describe_member(member: BlendMember, name_of: NameOf) -> str:
    name = name_of(member.digest) or member.digest[:12]
    return name if member.scale == 1 else f"{name}:{member.scale:g}"


def label(blend: Blend, name_of: NameOf) -> str | None:
    """``base``, the name of the only adapter, ``blend`` for several, or None for one that is not registered."""
    if blend.is_base:
        return BASE_NAME
    if len(blend.members) > 1:
        return BLEND_LABEL
    return name_of(blend.members[0].digest)
