"""Each error class in Cloudflare's words; the shapes byte for byte."""

import pytest

from runtime import errors
from runtime.cloudflare.errors import fault_of, render_binding_error, render_rest_error

ROWS = [
    (errors.InvalidRequest("x"), 400, 5006, "Bad input: Error: x"),
    (errors.MissingBody("x"), 400, 3003, "Request is missing headers or body: body"),
    (errors.UnsupportedVersion("x"), 405, 5019, "Request trying to use deprecated SDK version"),
    (errors.RequestTooLarge("x"), 413, 3006, "Request is too large: x"),
    (errors.ContextExceeded("x"), 400, 5006, "Bad input: Error: x"),
    (errors.UnknownRoute("x"), 400, 7000, "No route for that URI"),
    (errors.MethodNotAllowed("x", "GET"), 405, 7001, "GET not supported for requested URI."),
    (errors.UnknownModel("x", "@cf/x"), 400, 5007, "No such model @cf/x or task"),
    (errors.UnknownSchema("x", "@cf/x"), 404, 6002, "Model schema not found for @cf/x"),
    (errors.AdapterError("x"), 400, 1000, "x"),
    (errors.UnknownAdapter("x", "me"), 400, 3037, "AiError: Finetune me not found"),
    (
        errors.IncompleteAdapter("x"),
        400,
        3039,
        "Finetune is missing required files (model.safetensors and config.json) ",
    ),
    (errors.IncompatibleAdapter("x"), 400, 3030, "Lora not compatible with model: x"),
    (errors.InvalidAdapter("x"), 400, 1000, "x"),
    (errors.AdapterChanged("x"), 500, 3043, "Internal server error: x"),
    (errors.Unauthorized("x"), 401, 10000, "Authentication error"),
    (errors.MissingCredentials("x"), 400, 9106, "Missing X-Auth-Key, X-Auth-Email or Authorization headers"),
    (errors.MalformedCredentials("x"), 400, 6003, "Invalid request headers"),
    (errors.ForeignOrigin("x"), 403, 9109, "Unauthorized to access requested resource: x"),
    (errors.StorageError("x"), 500, 3043, "Internal server error: x"),
    (errors.ConversionDied("x"), 500, 3043, "Internal server error: x"),
    (errors.Overloaded("x"), 429, 3040, "Capacity temporarily exceeded, please try again."),
    (errors.RequestTimeout("x"), 408, 3007, "Request timeout"),
    (errors.EngineUnavailable("x"), 503, 3043, "Internal server error: x"),
    (errors.EngineDied("x"), 500, 3043, "Internal server error: x"),
    (errors.OutOfMemory("x"), 500, 3043, "Internal server error: x"),
    (errors.DecodeError("x"), 500, 3043, "Internal server error: x"),
    (errors.GemlaneError("x"), 500, 3043, "Internal server error: x"),
    (ZeroDivisionError("secret"), 500, 3043, "Internal server error"),
]


@pytest.mark.parametrize(("error", "status", "code", "text"), ROWS, ids=lambda row: type(row).__name__)
def test_row(error: Exception, status: int, code: int, text: str) -> None:
    """A class has its status, code and text; an error that is not ours tells nothing of itself."""
    fault = fault_of(error)
    assert (fault.status, fault.code, fault.text) == (status, code, text)


def test_an_adapter_name_of_any_length_is_echoed_in_short() -> None:
    """An answer does not repeat ten kilobytes of a client's words."""
    assert len(fault_of(errors.UnknownAdapter("x", "n" * 10_000)).text) < 300


def test_rest_shape() -> None:
    """``message`` before ``code``, ``errors`` first, the request's id behind the text."""
    _, body = render_rest_error(errors.InvalidRequest("oneOf at '/' not met, 2 matches"), "ID")
    assert body == (
        b'{"errors":[{"message":"AiError: Bad input: Error: oneOf at \'/\' not met, 2 matches (ID)","code":5006}],'
        b'"success":false,"result":{},"messages":[]}'
    )


@pytest.mark.parametrize(
    ("error", "body"),
    [
        (
            errors.Unauthorized("x"),
            b'{"result":null,"success":false,"errors":[{"code":10000,"message":"Authentication error"}],"messages":[]}',
        ),
        (
            errors.MissingCredentials("x"),
            b'{"success":false,"errors":[{"code":9106,'
            b'"message":"Missing X-Auth-Key, X-Auth-Email or Authorization headers"}],'
            b'"messages":[],"result":null}',
        ),
        (
            errors.MalformedCredentials("x"),
            b'{"result":null,"success":false,"errors":[{"code":6003,"message":"Invalid request headers","error_chain":'
            b'[{"code":6111,"message":"Invalid format for Authorization header"}]}],"messages":[]}',
        ),
        (
            errors.UnknownRoute("x"),
            b'{"errors":[{"code":7000,"message":"No route for that URI"}],"messages":[],"result":null,"success":false}',
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_gateway_shapes(error: Exception, body: bytes) -> None:
    """The gateway's errors, in the orders of keys that were recorded."""
    assert render_rest_error(error, "ID")[1] == body


@pytest.mark.parametrize(
    ("error", "body"),
    [
        (
            errors.InvalidRequest("t"),
            b'{"internalCode":5006,"httpCode":400,"name":"AiError","message":"AiError: Bad input: Error: t",'
            b'"description":"Error: t"}',
        ),
        (
            errors.UnknownModel("x", "@cf/x"),
            b'{"internalCode":5007,"httpCode":400,"name":"AiError","message":"AiError: No such model @cf/x or task",'
            b'"description":"No such model @cf/x or task"}',
        ),
    ],
    ids=["bad input", "unknown model"],
)
def test_binding_shape(error: Exception, body: bytes) -> None:
    """What a Worker's runtime reads; it shows ``<internalCode>: <description>``."""
    assert render_binding_error(error)[1] == body
