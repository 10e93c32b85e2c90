"""A dialect: the routes, the error formats and the API description of one kind of client, as one value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from aiohttp import web

from runtime.web.openapi import Paths


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """An error, ready to be sent."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ErrorFormat:
    """How errors look in one part of the URL space, and which headers every answer there carries.

    ``is_mine`` picks requests by their path. ``headers`` makes the headers from the request's id. ``render_error``
    turns any exception into an answer. A part that ``is_open`` needs no token. ``credentials`` gives the headers in
    which a token is looked for.
    """

    is_mine: Callable[[web.BaseRequest], bool]
    headers: Callable[[str], Mapping[str, str]]
    render_error: Callable[[Exception, str], ErrorAnswer]
    is_open: bool = False
    credentials: Callable[[web.BaseRequest], Mapping[str, str]] = lambda request: request.headers


@dataclass(frozen=True, slots=True)
class Dialect:
    """Everything that the application needs to know of one dialect.

    ``add_routes`` run in their order, so that a special path may come before a pattern that covers it. ``paths`` is the
    dialect's part of ``/openapi.json``.
    """

    add_routes: Sequence[Callable[[web.Application], None]]
    error_formats: Sequence[ErrorFormat]
    paths: Paths


def format_of(request: web.BaseRequest, formats: Sequence[ErrorFormat]) -> ErrorFormat:
    """The first format that claims ``request``; the last one claims every request that is left."""
    return next((error_format for error_format in formats if error_format.is_mine(request)), formats[-1])
