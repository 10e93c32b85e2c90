"""Cloudflare's routes, as OpenAPI says it."""

from __future__ import annotations

from typing import Any, Final

from runtime.chat.schema import CHAT_BODY
from runtime.cloudflare.wire import MODELS, SCHEMA
from runtime.web.openapi import (
    ANYTHING,
    COUNT,
    TEXT,
    Schema,
    answers,
    listing,
    operation,
    parameter,
    path,
    queries,
    record,
)

_AI: Final = "/client/v4/accounts/{account}/ai"
_GATEWAY: Final = "/v1/{account}/{gateway}/workers-ai"
_MODEL: Final = {"enum": list(MODELS)}
_COMPAT_MODEL: Final = {"enum": [f"workers-ai/{name}" for name in MODELS]}
_ACCOUNT: Final = parameter("account", "path")
_ONE: Final = parameter("finetune", "path")
_CALL: Final = (
    parameter("version", "query", {"const": "3"}),
    parameter("cf-consn-model-id", "header", _MODEL),
)
_TRUTH: Final = {"type": "boolean"}
_LOOKING: Final = (400, 401, 403, 405)
_WRITING: Final = (400, 401, 403, 405, 408, 413, 500)
_ANSWERING: Final = (400, 401, 403, 405, 408, 413, 429, 500, 503)

_USAGE: Final = record({"prompt_tokens": COUNT, "completion_tokens": COUNT, "total_tokens": COUNT})
_RESULT: Final = record({"response": TEXT, "usage": _USAGE})
_REST_ERROR: Final = record(
    {
        "success": {"const": False},
        "errors": listing(record({"code": {"type": "integer"}, "message": TEXT})),
        "messages": listing(ANYTHING),
        "result": {"type": ["object", "null"]},
    }
)
_BINDING_ERROR: Final = record(
    {
        "internalCode": {"type": "integer"},
        "httpCode": {"type": "integer"},
        "name": {"const": "AiError"},
        "message": TEXT,
        "description": TEXT,
    }
)
_FINETUNE: Final = record(
    {
        "id": TEXT,
        "created_at": {"type": "string", "format": "date-time"},
        "modified_at": {"type": "string", "format": "date-time"},
        "model": TEXT,
        "name": TEXT,
        "public": _TRUTH,
        "description": TEXT,
    }
)
_NEW_FINETUNE: Final = record(
    {"model": _MODEL, "name": {"type": "string", "minLength": 1, "maxLength": 200}},
    {"description": {"type": ["string", "null"], "maxLength": 2000}, "public": {"type": ["boolean", "null"]}},
)
_ASSET_FORM: Final = record(
    {
        "file_name": {"enum": ["adapter_config.json", "adapter_model.safetensors"]},
        "file": {"type": "string", "contentMediaType": "application/octet-stream"},
    }
)
_ASSET: Final = record(
    dict.fromkeys(("id", "bucket_name", "created_at", "file_name", "finetune_id", "modified_at"), TEXT)
)
_CHAT: Final = record(
    {"id": TEXT, "object": TEXT, "created": COUNT, "model": TEXT, "choices": listing(ANYTHING), "usage": _USAGE}
)


_CHAT_BODY: Final = {
    **CHAT_BODY,
    "properties": {**CHAT_BODY["properties"], "model": _MODEL},
    "additionalProperties": True,
}


def _enveloped(result: Schema) -> Schema:
    return record(
        {"result": result, "success": {"const": True}, "errors": listing(ANYTHING), "messages": listing(ANYTHING)}
    )


def _look(summary: str, result: Schema, statuses: tuple[int, ...] = _LOOKING) -> dict[str, Any]:
    return operation(summary, answers(_enveloped(result), _REST_ERROR, statuses))


def _binding_run(summary: str) -> dict[str, Any]:
    body = record({"inputs": SCHEMA["input"]}, {"options": ANYTHING})
    return operation(summary, answers(_RESULT, _BINDING_ERROR, _ANSWERING, can_stream=True), body)


_RUN: Final = operation(
    "Run the model", answers(_enveloped(_RESULT), _REST_ERROR, _ANSWERING, can_stream=True), SCHEMA["input"]
)
_STEP: Final = record(
    {"provider": {"const": "workers-ai"}, "endpoint": _MODEL, "query": SCHEMA["input"]},
    {"headers": {"type": "object"}},
)
_CHATTING: Final = operation("Chat", answers(_CHAT, _REST_ERROR, _ANSWERING, can_stream=True), _CHAT_BODY)

PATHS: Final = {
    _AI + "/run/{model}": path(
        _ACCOUNT,
        parameter("model", "path", _MODEL),
        *queries("lora"),
        post=_RUN,
    ),
    _AI + "/v1/chat/completions": path(
        _ACCOUNT,
        post=_CHATTING,
    ),
    _AI + "/finetunes": path(
        _ACCOUNT,
        get=_look("List finetunes", listing(_FINETUNE)),
        post=operation("Create a finetune", answers(_enveloped(_FINETUNE), _REST_ERROR, _WRITING), _NEW_FINETUNE),
    ),
    _AI + "/finetunes/public": path(
        _ACCOUNT, *queries("limit", "offset", "orderBy"), get=_look("List public finetunes", listing(_FINETUNE))
    ),
    _AI + "/finetunes/{finetune}": path(
        _ACCOUNT,
        _ONE,
        get=_look("Show a finetune", _FINETUNE),
        delete=_look("Delete a finetune", _FINETUNE, (*_LOOKING, 500)),
    ),
    _AI + "/finetunes/{finetune}/finetune-assets": path(
        _ACCOUNT,
        _ONE,
        post=operation(
            "Give a finetune one of its two files",
            answers(_enveloped(_ASSET), _REST_ERROR, _WRITING),
            _ASSET_FORM,
            "multipart/form-data",
        ),
    ),
    _AI + "/models/search": path(
        _ACCOUNT,
        *queries("search", "task", "author", "source", "page", "per_page"),
        get=_look("Search models", listing(ANYTHING)),
    ),
    _AI + "/models/schema": path(
        _ACCOUNT, *queries("model"), get=_look("A model's schema", ANYTHING, (400, 401, 403, 404, 405))
    ),
    _AI + "/tasks/search": path(_ACCOUNT, get=_look("List tasks", listing(ANYTHING))),
    _AI + "/authors/search": path(_ACCOUNT, get=_look("List authors", listing(ANYTHING))),
    "/client/v4/accounts": path(get=_look("List accounts", listing(ANYTHING))),
    "/client/v4/memberships": path(get=_look("List memberships", listing(ANYTHING))),
    "/client/v4/user/tokens/verify": path(get=_look("Verify a token", ANYTHING)),
    _GATEWAY + "/{model}": path(
        _ACCOUNT,
        parameter("gateway", "path"),
        parameter("model", "path", _MODEL),
        *queries("lora"),
        post=_RUN,
    ),
    _GATEWAY + "/v1/chat/completions": path(_ACCOUNT, parameter("gateway", "path"), post=_CHATTING),
    "/v1/{account}/{gateway}/compat/chat/completions": path(
        _ACCOUNT,
        parameter("gateway", "path"),
        post=operation(
            "Chat, by AI Gateway's names of models",
            answers(_CHAT, _REST_ERROR, _ANSWERING, can_stream=True),
            {
                **_CHAT_BODY,
                "properties": {
                    **_CHAT_BODY["properties"],
                    "model": _COMPAT_MODEL,
                },
            },
        ),
    ),
    "/v1/{account}/{gateway}": path(
        parameter("account", "path", {"const": "local"}),
        parameter("gateway", "path"),
        post=operation(
            "Try providers in turn",
            answers(_enveloped(_RESULT), _REST_ERROR, _ANSWERING, can_stream=True),
            {"type": "array", "items": _STEP, "minItems": 1, "maxItems": 16},
        ),
    ),
    "/run": path(*_CALL, post=_binding_run("Run, for the Worker binding")),
    "/ai-gateway/run": path(*_CALL, post=_binding_run("Run, for the Worker binding with a gateway")),
    "/ai-api/models/search": path(
        *queries("search", "task", "author", "source", "page", "per_page"),
        get=_look("Search models, for the Worker binding", listing(ANYTHING)),
    ),
}
