"""Every error in Cloudflare's words: its HTTP status, its code, its text, and the three shapes it travels in. Pure.

Sources: docs "workers-ai/platform/errors" for codes and statuses; recorded answers for the byte form of the shapes;
workerd ``src/cloudflare/internal/ai-api.ts`` for what the binding reads. Where the original's status is not known the
contract's choice, 400, stands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from runtime import errors
from runtime.errors import GemlaneError
from runtime.web.body import render_json

_MAX_ECHO: Final = 200  # longest piece of a client's own words that an answer repeats


@dataclass(frozen=True, slots=True)
class CloudflareFault:
    """One error on this wire. ``text`` is what stands after ``AiError: ``; ``retry_after_s`` 0 says nothing."""

    status: int
    code: int
    text: str
    is_gateway: bool = False
    retry_after_s: int = 0


def fault_of(error: Exception) -> CloudflareFault:
    """The row of the table that ``error`` belongs to: that of its class, or of the nearest class above it."""
    for kind in type(error).__mro__:
        if kind in _TABLE:
            return _TABLE[kind](error)
    return CloudflareFault(500, 3043, "Internal server error")


def render_rest_error(error: Exception, request_id: str) -> tuple[CloudflareFault, bytes]:
    """The error as REST shows it: enveloped, with the request's id, or in the gateway's form."""
    fault = fault_of(error)
    if fault.is_gateway:
        return fault, _render_gateway_error(error, fault)
    message = f"AiError: {fault.text} ({request_id})"
    body = {"errors": [{"message": message, "code": fault.code}], "success": False, "result": {}, "messages": []}
    return fault, render_json(body)


def render_binding_error(error: Exception) -> tuple[CloudflareFault, bytes]:
    """The error as the Worker binding reads it, unwrapped; a Worker sees ``<internalCode>: <description>``."""
    fault = fault_of(error)
    body = {
        "internalCode": fault.code,
        "httpCode": fault.status,
        "name": "AiError",
        "message": f"AiError: {fault.text}",
        "description": fault.text.removeprefix("Bad input: ").removeprefix("AiError: "),
    }
    return fault, render_json(body)


def _render_gateway_error(error: Exception, fault: CloudflareFault) -> bytes:
    """Errors of the gateway before Workers AI: ``code`` first, and an order of keys for each kind, as recorded."""
    entry: dict[str, Any] = {"code": fault.code, "message": fault.text}
    if isinstance(error, errors.MalformedCredentials):
        entry["error_chain"] = [{"code": 6111, "message": "Invalid format for Authorization header"}]
    if isinstance(error, errors.MissingCredentials):
        return render_json({"success": False, "errors": [entry], "messages": [], "result": None})
    if isinstance(error, errors.UnknownRoute | errors.MethodNotAllowed):
        return render_json({"errors": [entry], "messages": [], "result": None, "success": False})
    return render_json({"result": None, "success": False, "errors": [entry], "messages": []})


def _echo(text: str) -> str:
    return text if len(text) <= _MAX_ECHO else text[:_MAX_ECHO] + "..."


_TABLE: Final[dict[type, Callable[[Any], CloudflareFault]]] = {
    errors.InvalidRequest: lambda error: CloudflareFault(400, 5006, f"Bad input: Error: {error}"),
    errors.MissingBody: lambda _: CloudflareFault(400, 3003, "Request is missing headers or body: body"),
    errors.UnsupportedVersion: lambda _: CloudflareFault(405, 5019, "Request trying to use deprecated SDK version"),
    errors.RequestTooLarge: lambda error: CloudflareFault(413, 3006, f"Request is too large: {error}"),
    errors.UnknownModel: lambda error: CloudflareFault(400, 5007, f"No such model {_echo(error.model)} or task"),
    errors.UnknownSchema: lambda error: CloudflareFault(
        404, 6002, f"Model schema not found for {_echo(error.model)}", is_gateway=True
    ),
    errors.UnknownAdapter: lambda error: CloudflareFault(400, 3037, f"AiError: Finetune {_echo(error.name)} not found"),
    errors.IncompleteAdapter: lambda _: CloudflareFault(
        400, 3039, "Finetune is missing required files (model.safetensors and config.json) "
    ),
    errors.IncompatibleAdapter: lambda error: CloudflareFault(400, 3030, f"Lora not compatible with model: {error}"),
    errors.AdapterError: lambda error: CloudflareFault(400, 1000, str(error)),
    errors.AdapterChanged: lambda error: CloudflareFault(
        500, 3043, f"Internal server error: {error}", retry_after_s=errors.AdapterChanged.retry_after_s
    ),
    errors.Overloaded: lambda error: CloudflareFault(
        429, 3040, "Capacity temporarily exceeded, please try again.", retry_after_s=error.retry_after_s
    ),
    errors.RequestTimeout: lambda _: CloudflareFault(408, 3007, "Request timeout"),
    errors.EngineUnavailable: lambda error: CloudflareFault(
        503, 3043, f"Internal server error: {error}", retry_after_s=error.retry_after_s
    ),
    errors.EngineDied: lambda error: CloudflareFault(
        500, 3043, f"Internal server error: {error}", retry_after_s=errors.EngineDied.retry_after_s
    ),
    errors.EngineError: lambda error: CloudflareFault(500, 3043, f"Internal server error: {error}"),
    errors.Unauthorized: lambda _: CloudflareFault(401, 10000, "Authentication error", is_gateway=True),
    errors.MissingCredentials: lambda _: CloudflareFault(
        400, 9106, "Missing X-Auth-Key, X-Auth-Email or Authorization headers", is_gateway=True
    ),
    errors.MalformedCredentials: lambda _: CloudflareFault(400, 6003, "Invalid request headers", is_gateway=True),
    errors.ForeignOrigin: lambda error: CloudflareFault(
        403, 9109, f"Unauthorized to access requested resource: {error}", is_gateway=True
    ),
    errors.Forbidden: lambda error: CloudflareFault(
        403, 9109, f"Unauthorized to access requested resource: {error}", is_gateway=True
    ),
    errors.UnknownRoute: lambda _: CloudflareFault(400, 7000, "No route for that URI", is_gateway=True),
    errors.MethodNotAllowed: lambda error: CloudflareFault(
        405, 7001, f"{error.method} not supported for requested URI.", is_gateway=True
    ),
    GemlaneError: lambda error: CloudflareFault(500, 3043, f"Internal server error: {error}"),
}
