"""OpenAI's routes, as OpenAPI says it."""

from __future__ import annotations

from typing import Final

from runtime.chat.schema import CHAT_BODY, LORA, MODEL, TEXT_BODY
from runtime.openai.responses.body import FIELDS as RESPONSE_FIELDS
from runtime.openai.responses.body import IGNORED as RESPONSE_IGNORED
from runtime.web.openapi import ANYTHING, COUNT, TEXT, answers, listing, operation, parameter, path, record

_LOOKING: Final = (400, 401, 403, 405)
_ANSWERING: Final = (400, 401, 403, 404, 405, 408, 413, 429, 500, 503)

_NULLABLE: Final = {"type": ["string", "null"]}
_ERROR: Final = record({"error": record({"message": TEXT, "type": TEXT, "param": _NULLABLE, "code": _NULLABLE})})
_COMPLETION: Final = record(
    {"id": TEXT, "object": TEXT, "created": COUNT, "model": TEXT, "choices": listing(ANYTHING), "usage": ANYTHING}
)
_MODEL: Final = record({"id": TEXT, "object": {"const": "model"}, "created": COUNT, "owned_by": TEXT})
_MODELS: Final = record({"object": {"const": "list"}, "data": listing(_MODEL)})
_RESPONSE: Final = record(
    {"id": TEXT, "object": {"const": "response"}, "created_at": COUNT, "status": TEXT, "output": listing(ANYTHING)}
)
_RESPONSE_BODY: Final = {
    "type": "object",
    "properties": {
        **{name: field.schema for name, field in RESPONSE_FIELDS.items()},
        **dict.fromkeys(sorted(RESPONSE_IGNORED), ANYTHING),
        "model": MODEL,
        "lora": LORA,
        "input": TEXT,
        "text": {"type": "object", "properties": {"format": {"enum": [{"type": "text"}, {"type": "json_object"}]}}},
    },
    "required": ["model", "input"],
    "additionalProperties": False,
}
_STORED: Final = operation("Refused: no response is stored", answers(ANYTHING, _ERROR, (400, 401, 403, 405)))
_ANSWERS: Final = answers(_COMPLETION, _ERROR, _ANSWERING, can_stream=True)

PATHS: Final = {
    "/v1/chat/completions": path(post=operation("Chat", _ANSWERS, CHAT_BODY)),
    "/v1/completions": path(post=operation("Complete a text", _ANSWERS, TEXT_BODY)),
    "/v1/responses": path(
        post=operation("Respond", answers(_RESPONSE, _ERROR, _ANSWERING, can_stream=True), _RESPONSE_BODY)
    ),
    "/v1/responses/{response}": path(parameter("response", "path"), get=_STORED, post=_STORED, delete=_STORED),
    "/v1/models": path(get=operation("List models", answers(_MODELS, _ERROR, _LOOKING))),
    "/v1/models/{model}": path(
        parameter("model", "path"), get=operation("Show a model", answers(_MODEL, _ERROR, (404, *_LOOKING)))
    ),
}
