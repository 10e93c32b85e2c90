"""The admin API's routes, as OpenAPI says it."""

from __future__ import annotations

from typing import Any, Final

from runtime.web.openapi import ANYTHING, COUNT, TEXT, answers, listing, operation, parameter, path, queries, record

_TIME: Final = {"type": "string", "format": "date-time"}
_TEXT_OR_NULL: Final = {"type": ["string", "null"]}
_TRUTH: Final = {"type": "boolean"}
_STATES: Final = {"enum": ["awaiting", "converting", "checked", "offered", "ready", "refused", "retiring"]}
_ADAPTER: Final = record(
    {
        "id": TEXT,
        "name": TEXT,
        "state": _STATES,
        "reason": _TEXT_OR_NULL,
        "warnings": listing(TEXT),
        "digest": _TEXT_OR_NULL,
        "bytes": COUNT,
        "rank": COUNT,
        "source": {"enum": ["folder", "upload"]},
        "location": _TEXT_OR_NULL,
        "created_at": _TIME,
        "modified_at": _TIME,
        "hits": COUNT,
        "last_used_at": {**_TIME, "type": ["string", "null"]},
        "pinned": _TRUTH,
        "in_lane": _TRUTH,
        "replacement": {"type": ["object", "null"]},
    }
)
_ALL: Final = record({"adapters": listing(_ADAPTER), "limits": record({}), "adapter_batching": TEXT})
_ERROR: Final = record({"error": record({"code": TEXT, "message": TEXT, "request_id": TEXT})})
_OPENAI_ERROR: Final = record({"error": record({"message": TEXT, "type": TEXT})})
_READING: Final = (401, 403, 404, 405)
_CHANGING: Final = (400, 401, 403, 404, 405, 408, 409, 412, 413, 422, 500, 503, 507)
_CONDITIONS: Final = (
    parameter("If-Match", "header", required=False),
    parameter("If-None-Match", "header", required=False),
)
_ONE: Final = parameter("adapter", "path")


def _created(responses: dict[str, Any]) -> dict[str, Any]:
    return responses | {"201": {**responses["200"], "description": "added"}}


def _vllm(summary: str, *required: str) -> dict[str, Any]:
    statuses = (400, 401, 403, 404, 405, 408, 413, 500, 503)
    return path(
        post=operation(
            summary,
            answers(TEXT, _OPENAI_ERROR, statuses) | {"200": {"description": "success", "content": {"text/plain": {}}}},
            record(dict.fromkeys(required, TEXT)),
        )
    )


PATHS: Final = {
    "/adapters": path(
        get=operation("Every adapter, with its state", answers(_ALL, _ERROR, _READING)),
        post=operation(
            "Add or replace an adapter from a path below the adapters folder",
            _created(answers(_ADAPTER, _ERROR, _CHANGING)),
            record({"name": TEXT, "path": TEXT}),
        ),
    ),
    "/adapters/{adapter}": path(
        _ONE,
        *_CONDITIONS,
        *queries("sha256"),
        get=operation("One adapter", answers(_ADAPTER, _ERROR, _READING)),
        put=operation(
            "Add or replace an adapter: a GGUF, a tar of a PEFT or MLX folder, or a form with its files",
            _created(answers(_ADAPTER, _ERROR, _CHANGING)),
            ANYTHING,
            "application/octet-stream",
        ),
        patch=operation("Pin or unpin an adapter", answers(_ADAPTER, _ERROR, _CHANGING), record({"pinned": _TRUTH})),
        delete=operation("Remove an adapter", answers(_ADAPTER, _ERROR, _CHANGING)),
    ),
    "/adapters:rescan": path(
        post=operation("Look at the adapters folder now", answers(_ALL, _ERROR, _CHANGING)),
    ),
    "/lora-adapters": path(
        get=operation("llama-server's list of adapters", answers(listing(ANYTHING), _ERROR, _READING))
    ),
    "/v1/load_lora_adapter": _vllm("vLLM's way to add an adapter", "lora_name", "lora_path"),
    "/v1/unload_lora_adapter": _vllm("vLLM's way to remove an adapter", "lora_name"),
}
