"""Errors of the admin API: the plain format, with a status for everything that can be wrong with an adapter. Pure."""

from __future__ import annotations

from typing import Final

from runtime import errors
from runtime.errors import GemlaneError
from runtime.web.body import render_json

_STATUSES: Final[dict[type, int]] = {
    errors.InvalidRequest: 400,
    errors.Unauthorized: 401,
    errors.ForeignOrigin: 403,
    errors.Forbidden: 403,
    errors.UnknownRoute: 404,
    errors.UnknownAdapter: 404,
    errors.MethodNotAllowed: 405,
    errors.RequestTimeout: 408,
    errors.AdapterConflict: 409,
    errors.GenerationMismatch: 412,
    errors.RequestTooLarge: 413,
    errors.AdapterError: 422,
    errors.EngineUnavailable: 503,
    errors.AdapterBudget: 507,
    errors.StorageError: 507,
    GemlaneError: 500,
}


def render_error(error: Exception, request_id: str) -> tuple[int, bytes]:
    """The status, and the body with the class's code and the message; an unexpected error shows no details."""
    known = error if isinstance(error, GemlaneError) else GemlaneError("internal server error")
    status = next(_STATUSES[kind] for kind in type(known).__mro__ if kind in _STATUSES)
    return status, render_json({"error": {"code": known.code, "message": str(known), "request_id": request_id}})
