"""A face: how one part of the URL space looks to its clients, whatever happens there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from aiohttp import web


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """An error, ready to be sent."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Face:
    """What a dialect tells the middleware.

    ``is_mine`` picks requests (by path; the first face that claims a request has it), ``headers`` gives what every
    answer carries, from the request's id, and ``render_error`` turns any exception into an answer. ``is_open`` parts
    need no token.
    """

    is_mine: Callable[[web.BaseRequest], bool]
    headers: Callable[[str], Mapping[str, str]]
    render_error: Callable[[Exception, str], ErrorAnswer]
    is_open: bool = False


def face_of(request: web.BaseRequest, faces: Sequence[Face]) -> Face:
    """The face that ``request`` sees; the last one claims what nobody else does."""
    return next((face for face in faces if face.is_mine(request)), faces[-1])
