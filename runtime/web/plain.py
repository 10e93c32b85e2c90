"""The error format of paths that belong to no dialect: health, the API's description, unknown paths."""

from __future__ import annotations

from typing import Final

from runtime import errors
from runtime.errors import GemlaneError
from runtime.web.body import render_json
from runtime.web.dialect import ErrorAnswer, ErrorFormat

_STATUSES: Final[dict[type, int]] = {
    errors.InvalidRequest: 400,
    errors.UnknownRoute: 404,
    errors.MethodNotAllowed: 405,
    errors.Unauthorized: 401,
    errors.ForeignOrigin: 403,
    errors.Forbidden: 403,
    errors.EngineUnavailable: 503,
}


def render_error(error: Exception, request_id: str) -> ErrorAnswer:
    """The class's code and the message; an unexpected error shows no details."""
    known = error if isinstance(error, GemlaneError) else GemlaneError("internal server error")
    status = next((_STATUSES[kind] for kind in type(known).__mro__ if kind in _STATUSES), 500)
    body = {"error": {"code": known.code, "message": str(known), "request_id": request_id}}
    return ErrorAnswer(status, render_json(body))


def headers(request_id: str) -> dict[str, str]:
    """What every answer outside the two API dialects carries."""
    return {"X-Request-Id": request_id}


ERROR_FORMAT: Final = ErrorFormat(lambda _: True, headers, render_error)
"""Claims every request that is left."""
OPEN_FORMAT: Final = ErrorFormat(
    lambda request: request.path in ("/health", "/ready"), headers, render_error, is_open=True
)
"""What needs no token."""
