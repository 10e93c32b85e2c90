"""Every error in OpenAI's words: its HTTP status, type and code. Pure.

Source: OpenAI's guide "Error codes", and the classes that its Python client raises by status.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from runtime import errors
from runtime.errors import GemlaneError
from runtime.web.body import render_json


@dataclass(frozen=True, slots=True)
class OpenAIFault:
    """One row: ``code`` may be null on this wire; ``retry_after_s`` 0 says nothing."""

    status: int
    type: str
    code: str | None = None
    retry_after_s: int = 0


_INVALID: Final = "invalid_request_error"

_TABLE: Final[dict[type, OpenAIFault]] = {
    errors.InvalidRequest: OpenAIFault(400, _INVALID),
    errors.HarmfulRequest: OpenAIFault(400, _INVALID, "harmful_request"),
    errors.InvalidParameter: OpenAIFault(400, _INVALID, "invalid_value"),
    errors.UnsupportedParameter: OpenAIFault(400, _INVALID, "unsupported_parameter"),
    errors.UnknownParameter: OpenAIFault(400, _INVALID, "unknown_parameter"),
    errors.UnsupportedGrammar: OpenAIFault(400, _INVALID, "unsupported_grammar"),
    errors.RequestTooLarge: OpenAIFault(413, _INVALID, "request_too_large"),
    errors.ContextExceeded: OpenAIFault(400, _INVALID, "context_length_exceeded"),
    errors.UnknownRoute: OpenAIFault(404, _INVALID, "unknown_url"),
    errors.MethodNotAllowed: OpenAIFault(405, _INVALID, "method_not_supported"),
    errors.UnknownModel: OpenAIFault(404, _INVALID, "model_not_found"),
    errors.AdapterError: OpenAIFault(400, _INVALID, "adapter_unusable"),
    errors.UnknownAdapter: OpenAIFault(404, _INVALID, "model_not_found"),
    errors.AdapterChanged: OpenAIFault(409, _INVALID, "adapter_changed"),
    errors.Unauthorized: OpenAIFault(401, _INVALID, "invalid_api_key"),
    errors.ForeignOrigin: OpenAIFault(403, _INVALID, "foreign_origin"),
    errors.Forbidden: OpenAIFault(403, _INVALID, "forbidden"),
    errors.Overloaded: OpenAIFault(429, "rate_limit_error", "rate_limit_exceeded"),
    errors.RequestTimeout: OpenAIFault(408, "timeout", "request_timeout"),
    errors.EngineUnavailable: OpenAIFault(503, "server_error", "engine_unavailable"),
    GemlaneError: OpenAIFault(500, "server_error"),
}


def fault_of(error: Exception) -> OpenAIFault:
    """The row of the table that ``error`` belongs to: that of its class, or of the nearest class above it."""
    fault = next((_TABLE[kind] for kind in type(error).__mro__ if kind in _TABLE), OpenAIFault(500, "server_error"))
    if isinstance(error, errors.Overloaded | errors.EngineUnavailable | errors.EngineDied | errors.AdapterChanged):
        fault = replace(fault, retry_after_s=error.retry_after_s)
    return fault


def error_fields(error: Exception) -> dict[str, str | None]:
    """What stands under ``error``; an unexpected error shows no details."""
    message = str(error) if isinstance(error, GemlaneError) else "internal server error"
    if isinstance(error, errors.UnknownAdapter):
        message = f"no adapter {error.name[:200]!r}: {message}"
    param = error.param or None if isinstance(error, errors.InvalidParameter) else None
    fault = fault_of(error)
    return {"message": message, "type": fault.type, "param": param, "code": fault.code}


def render_error(error: Exception) -> tuple[OpenAIFault, bytes]:
    """The error's row, and its body."""
    return fault_of(error), render_json({"error": error_fields(error)})
