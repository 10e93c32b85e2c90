"""``GET /openapi.json``: what each dialect says of its routes, put together as one OpenAPI 3.1 document.

Every status that an operation may answer with is listed; a test holds the list against the routes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from aiohttp import web

from runtime.web.body import render_json

Schema = Mapping[str, Any]
Paths = Mapping[str, Mapping[str, Any]]

JSON: Final = "application/json"
STREAM: Final = "text/event-stream"
TEXT: Final[Schema] = {"type": "string"}
COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
ANYTHING: Final[Schema] = {}


def record(required: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    """The schema of an object with these keys, and perhaps others."""
    return {"type": "object", "properties": {**required, **(optional or {})}, "required": list(required)}


def listing(item: Schema) -> Schema:
    """The schema of a list."""
    return {"type": "array", "items": item}


def answers(success: Schema, error: Schema, statuses: Iterable[int], *, can_stream: bool = False) -> dict[str, Any]:
    """Responses of an operation: 200, and an error for each status."""
    content: dict[str, Any] = {JSON: {"schema": success}}
    if can_stream:
        content[STREAM] = {"schema": ANYTHING}
    refused = {str(status): {"description": "error", "content": {JSON: {"schema": error}}} for status in statuses}
    return {"200": {"description": "success", "content": content}, **refused}


def operation(
    summary: str, responses: Mapping[str, Any], body: Schema | None = None, media_type: str = JSON
) -> dict[str, Any]:
    """One method of one path."""
    described: dict[str, Any] = {"summary": summary, "responses": responses}
    if body is not None:
        described["requestBody"] = {"required": True, "content": {media_type: {"schema": body}}}
    return described


def parameter(name: str, place: str, schema: Schema = TEXT, *, required: bool = True) -> dict[str, Any]:
    """One value beside the body; ``place`` is ``path``, ``query`` or ``header``."""
    return {"name": name, "in": place, "required": required, "schema": schema}


def queries(*names: str) -> list[dict[str, Any]]:
    """What a query may hold: all text, all optional."""
    return [parameter(name, "query", required=False) for name in names]


def path(*parameters: Mapping[str, Any], **operations: Mapping[str, Any]) -> dict[str, Any]:
    """One path: what stands beside its bodies, and its operations by method."""
    return {"parameters": list(parameters), **operations} if parameters else dict(operations)


def describe(*dialects: Paths) -> dict[str, Any]:
    """The whole document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "gemlane",
            "version": "1",
            "description": "One Gemma, any number of LoRA adapters, in the dialects of Workers AI and OpenAI.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"token": []}],
        "paths": {name: described for dialect in dialects for name, described in dialect.items()},
    }


def add_routes(app: web.Application, *dialects: Paths) -> None:
    """Serve the document."""
    body = render_json(describe(*dialects))

    async def document(_request: web.Request) -> web.Response:
        return web.Response(body=body, headers={"Content-Type": JSON})

    app.router.add_get("/openapi.json", document)
