"""Every failure a caller can act on, as one tree.

::

    GemlaneError
    ├── ConfigError              the command line, environment or configuration file is wrong
    ├── InvalidRequest           the body breaks the contract
    │   ├── MissingBody          the body is missing
    │   ├── InvalidParameter     one named value of the body is wrong
    │   │   ├── UnsupportedParameter   other servers have it, this one does not
    │   │   ├── UnknownParameter       no server is known to have it
    │   │   └── UnsupportedGrammar     answers cannot be held to this schema or grammar
    │   ├── UnsupportedVersion   an old version of a client's protocol
    │   ├── HarmfulRequest       it ended the engine twice
    │   ├── RequestTooLarge      a body or upload over its limit
    │   └── ContextExceeded      the prompt leaves no room in the context window
    ├── UnknownRoute             no such path
    ├── MethodNotAllowed         the path exists, but not for this method
    ├── UnknownModel             no such base model here
    │   └── UnknownSchema        the schema of such a model
    ├── AdapterError
    │   ├── UnknownAdapter       no adapter of that name or id
    │   ├── IncompleteAdapter    a finetune whose files are not both uploaded
    │   ├── IncompatibleAdapter  made for another base model, or over the engine's rank
    │   ├── InvalidAdapter       its file breaks a rule
    │   ├── AdapterChanged       it was replaced or removed while the request waited
    │   ├── AdapterConflict      its name is taken, or it lies in the adapters folder
    │   ├── GenerationMismatch   a change meant for another content than the one that is served
    │   └── AdapterBudget        as many adapters, or as many bytes of them, as there may be
    ├── StorageError             the disk is full, or read-only
    ├── OutOfMemory              the system refused the memory that one request needs
    ├── ConversionDied           the process that converts an upload ended without a result
    ├── Unauthorized             the token is not in the list
    │   ├── MissingCredentials   the request has no token
    │   └── MalformedCredentials the header holds something else than one bearer token
    ├── Forbidden                the token may not do that
    ├── ForeignOrigin            a page of another site asks, in the user's browser
    ├── Overloaded               the queue is full
    ├── RequestTimeout           our own time limit
    ├── ServerUnreachable        a command finds no server at the address
    ├── ServerRefused            the server answers a command with an error
    └── EngineError
        ├── ModelLoadError       the base model cannot be loaded
        ├── EngineUnavailable    the engine is starting, or restarting
        ├── EngineDied           the engine ended while the request ran
        └── DecodeError          llama.cpp refused a batch

``code`` is the stable name of the class on the pipe, in logs and in metrics. HTTP statuses and a dialect's own numbers
belong to that dialect.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar


class GemlaneError(Exception):
    """The root. ``str(error)`` is one line for a user: what came, what was allowed, the way out."""

    code: ClassVar[str] = "internal"


class ConfigError(GemlaneError):
    """A flag, environment variable or configuration key that cannot be used."""

    code = "config"


class InvalidRequest(GemlaneError):
    """A request that breaks the contract; asking again will not help."""

    code = "invalid_request"


class MissingBody(InvalidRequest):
    """A request without a body, where one is needed."""

    code = "missing_body"


class InvalidParameter(InvalidRequest):
    """One value of a request is wrong; ``param`` is its key, empty where it is not known."""

    code = "invalid_parameter"

    def __init__(self, message: str, param: str = "") -> None:
        super().__init__(message)
        self.param = param


class UnsupportedParameter(InvalidParameter):
    """A parameter that other servers have and this one does not."""

    code = "unsupported_parameter"


class UnknownParameter(InvalidParameter):
    """A parameter that no server is known to have."""

    code = "unknown_parameter"


class UnsupportedGrammar(InvalidParameter):
    """A JSON schema or a grammar that answers cannot be held to, as a whole."""

    code = "unsupported_grammar"


class UnsupportedVersion(InvalidRequest):
    """A version of a client's protocol that is not served."""

    code = "unsupported_version"


class HarmfulRequest(InvalidRequest):
    """A request during which the engine process ended twice in a row; the same request is refused for a while."""

    code = "harmful_request"


class RequestTooLarge(InvalidRequest):
    """A body or an upload over its limit."""

    code = "request_too_large"


class ContextExceeded(InvalidRequest):
    """A prompt that leaves no room for an answer in the context window."""

    code = "context_exceeded"


class UnknownRoute(GemlaneError):
    """The path does not exist."""

    code = "unknown_route"


class MethodNotAllowed(GemlaneError):
    """The path does not take that method. ``method`` is what came, ``allowed`` are the methods it takes."""

    code = "method_not_allowed"

    def __init__(self, message: str, method: str = "", allowed: frozenset[str] = frozenset()) -> None:
        super().__init__(message)
        self.method = method
        self.allowed = allowed


class UnknownModel(GemlaneError):
    """A model id that is not served here; ``model`` is what came."""

    code = "unknown_model"

    def __init__(self, message: str, model: str = "") -> None:
        super().__init__(message)
        self.model = model


class UnknownSchema(UnknownModel):
    """The schema of a model that is not served here."""

    code = "unknown_schema"


class AdapterError(GemlaneError):
    """Something is wrong with the adapter that was asked for."""

    code = "adapter"


class UnknownAdapter(AdapterError):
    """No adapter has that name or id; ``name`` is what came."""

    code = "unknown_adapter"

    def __init__(self, message: str, name: str = "") -> None:
        super().__init__(message)
        self.name = name


class IncompleteAdapter(AdapterError):
    """A finetune that still waits for one of its files."""

    code = "incomplete_adapter"


class IncompatibleAdapter(AdapterError):
    """An adapter made for another base model, or of a higher rank than the engine has room for."""

    code = "incompatible_adapter"


class InvalidAdapter(AdapterError):
    """An adapter file that breaks a rule of its format."""

    code = "invalid_adapter"


class AdapterChanged(AdapterError):
    """The adapter was replaced or removed while the request waited, and the content it was to run under is gone."""

    code = "adapter_changed"
    retry_after_s: ClassVar[int] = 1


class AdapterConflict(AdapterError):
    """A name that another adapter has, or an adapter that only a change to the adapters folder can change."""

    code = "adapter_conflict"


class GenerationMismatch(AdapterError):
    """A change that is meant for another content than the one that is served."""

    code = "generation_mismatch"


class AdapterBudget(AdapterError):
    """As many adapters, or as many bytes of them, as the settings allow."""

    code = "adapter_budget"


class StorageError(GemlaneError):
    """A file cannot be written; nothing half-written is left."""

    code = "storage"


class OutOfMemory(GemlaneError):
    """The system refused the memory that one request needs; the others go on."""

    code = "out_of_memory"


class ConversionDied(GemlaneError):
    """The process that converts an upload was killed, or ran out of memory."""

    code = "conversion_died"


class Unauthorized(GemlaneError):
    """The token that came is not in the list."""

    code = "unauthorized"


class MissingCredentials(Unauthorized):
    """No token came, where one is required."""

    code = "missing_credentials"


class MalformedCredentials(Unauthorized):
    """The Authorization header is not ``Bearer <token>``."""

    code = "malformed_credentials"


class ForeignOrigin(GemlaneError):
    """A web page of another site asks, in the browser of a user who has access."""

    code = "foreign_origin"


class Forbidden(GemlaneError):
    """A token that may not do what was asked."""

    code = "forbidden"


class Overloaded(GemlaneError):
    """The queue is full; the same request may succeed after ``retry_after_s``."""

    code = "overloaded"

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RequestTimeout(GemlaneError):
    """The request ran past the server's own time limit."""

    code = "request_timeout"


class ServerUnreachable(GemlaneError):
    """No server answers at the address that a command was given."""

    code = "server_unreachable"


class ServerRefused(GemlaneError):
    """The server answered a command with an error."""

    code = "server_refused"


class EngineError(GemlaneError):
    """The engine could not answer; the request itself was fine."""

    code = "engine"


class ModelLoadError(EngineError):
    """The base model cannot be loaded."""

    code = "model_load"


class EngineUnavailable(EngineError):
    """The engine is not ready yet, or not ready again; ``retry_after_s`` is when it may be."""

    code = "engine_unavailable"

    def __init__(self, message: str, retry_after_s: int = 2) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineDied(EngineError):
    """The engine process ended while the request was running; the next one may serve after ``retry_after_s``."""

    code = "engine_died"
    retry_after_s: ClassVar[int] = 2


class DecodeError(EngineError):
    """llama.cpp refused or failed a batch."""

    code = "decode"


def _walk(kind: type[GemlaneError]) -> dict[str, type[GemlaneError]]:
    classes = {kind.code: kind}
    for child in kind.__subclasses__():
        classes |= _walk(child)
    return classes


BY_CODE = _walk(GemlaneError)


def from_code(code: str, message: str) -> GemlaneError:
    """The error that crossed the pipe as ``code`` and ``message``; an unknown code becomes the root class."""
    return BY_CODE.get(code, GemlaneError)(message)


def without_folders(message: str, *paths: Path) -> str:
    """The message with each path shortened to its name, and files within it to theirs: clients see no folder."""
    for path in paths:
        if path.name:
            message = message.replace(f"{path}{os.sep}", "").replace(str(path), path.name)
    return message
