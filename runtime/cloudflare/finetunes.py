"""LoRA finetunes: created, filled with their two files, listed.

Sources: docs "fine-tunes/loras"; wrangler ``packages/wrangler/src/ai/createFinetune.ts``, measured; the SDKs' types.
The routes that show one and delete one are our own: the original has neither.
"""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any, Final

from aiohttp import web

from runtime.adapters.record import UploadRecord
from runtime.adapters.upload_rules import check_file_name
from runtime.adapters.uploads import Uploads
from runtime.cloudflare.wire import MODELS, names_of, render_envelope
from runtime.errors import AdapterError, InvalidRequest, UnknownAdapter
from runtime.web.body import parse_json_object
from runtime.web.keys import ADAPTERS, LIMITS, SETTINGS
from runtime.web.limits import read_body
from runtime.web.uploads import receive

_FINETUNES: Final = "/client/v4/accounts/{account}/ai/finetunes"
_ONE: Final = "/{finetune:(?!public/?$)[^/]+}"  # ``public`` is a list; a finetune of that name has its id
_ASSET_NAMESPACE: Final = uuid.UUID("0a4a3e6e-4f77-5d5c-8a3e-0c6d9f6b7a10")  # ours alone, drawn once
_BUCKET: Final = "gemlane"


async def create(request: web.Request) -> web.Response:
    """``POST finetunes``, JSON regardless of its content type.

    Raises:
        InvalidRequest: the body is not a finetune's.
        AdapterError: it names another base model.
    """
    fields = parse_json_object(await read_body(request, request.app[LIMITS]))
    model, name = _text(fields, "model"), _text(fields, "name")
    description = _text(fields, "description") if fields.get("description") is not None else ""
    is_public = fields.get("public")
    if is_public is not None and not isinstance(is_public, bool):
        raise InvalidRequest("public must be a boolean")
    names = names_of(request.app[SETTINGS].cloudflare_model)
    if model not in names:
        raise AdapterError(f"MODEL_NOT_SUPPORTED: {model[:200]}; this server finetunes {' and '.join(names)} alone")
    record = await _finetunes(request).create(name, model, description, is_public=is_public or False)
    return _answer(render_finetune(record))


async def upload(request: web.Request) -> web.Response:
    """``POST finetunes/{id or name}/finetune-assets``: the parts ``file_name`` and ``file``, in any order.

    Raises:
        AdapterError: no finetune has that id or name.
        InvalidRequest: a part is missing.
        InvalidAdapter: the file name is not one of an adapter's, or the file breaks a rule.
    """
    finetunes, limits = _finetunes(request), request.app[LIMITS]
    record = finetunes.find(request.match_info["finetune"])
    if record is None:
        raise AdapterError("MODEL_NOT_SUPPORTED: there is no such finetune; create it first")
    max_bytes = request.app[SETTINGS].max_adapter_mib << 20
    async with receive(request, finetunes.state.incoming, max_bytes=max_bytes, limit_s=limits.upload_s) as form:
        file_name = form.fields.get("file_name")
        if file_name is None:
            raise InvalidRequest("the form has no part named file_name")
        check_file_name(file_name)
        record = await finetunes.add_file(record.id, file_name, form.file)
    return _answer(render_asset(record, file_name))


async def list_all(request: web.Request) -> web.Response:
    """``GET finetunes``: a flat list, as wrangler needs it."""
    return _answer([render_finetune(record) for record in _kept(request)])


async def list_public(request: web.Request) -> web.Response:
    """``GET finetunes/public``, a page of it."""
    offset, limit = (_count(request.query.get(name)) for name in ("offset", "limit"))
    public = [record for record in _kept(request) if record.is_public]
    public.sort(key=lambda record: record.name if request.query.get("orderBy") == "name" else record.id)
    start = offset or 0
    page = public[start:] if limit is None else public[start : start + limit]
    return _answer([render_finetune(record) for record in page])


async def get_one(request: web.Request) -> web.Response:
    """``GET finetunes/{id or name}``: ours.

    Raises:
        UnknownAdapter: no finetune has that id or name.
    """
    name = request.match_info["finetune"]
    record = _finetunes(request).find(name)
    if record is None:
        raise UnknownAdapter("there is no such finetune", name)
    return _answer(render_finetune(record))


async def delete(request: web.Request) -> web.Response:
    """``DELETE finetunes/{id or name}``: ours. Answers that run under it are finished.

    Raises:
        UnknownAdapter: no finetune has that id or name.
    """
    name = request.match_info["finetune"]
    record = _finetunes(request).find(name)
    if record is None:
        raise UnknownAdapter("there is no such finetune", name)
    await _finetunes(request).remove(record.id)
    return _answer(render_finetune(record))


def add_routes(app: web.Application) -> None:
    """Everything about finetunes, each path with and without a slash at its end."""
    for slash in ("", "/"):
        app.router.add_post(_FINETUNES + slash, create)
        app.router.add_get(_FINETUNES + slash, list_all)
        app.router.add_get(_FINETUNES + "/public" + slash, list_public)
        app.router.add_get(_FINETUNES + _ONE + slash, get_one)
        app.router.add_delete(_FINETUNES + _ONE + slash, delete)
        app.router.add_post(_FINETUNES + "/{finetune}/finetune-assets" + slash, upload)


def render_finetune(record: UploadRecord) -> dict[str, Any]:
    """A finetune under its names on this wire."""
    return {
        "id": record.id,
        "created_at": _time(record.created_at),
        "model": record.model,
        "modified_at": _time(record.modified_at),
        "name": record.name,
        "public": record.is_public,
        "description": record.description,
    }


def render_asset(record: UploadRecord, file_name: str) -> dict[str, Any]:
    """What an upload is answered with; the six keys that the 4.x SDK reads."""
    return {
        "id": str(uuid.uuid5(_ASSET_NAMESPACE, f"{record.id}/{file_name}")),
        "bucket_name": _BUCKET,
        "created_at": _time(record.modified_at),
        "file_name": file_name,
        "finetune_id": record.id,
        "modified_at": _time(record.modified_at),
    }


def _kept(request: web.Request) -> list[UploadRecord]:
    """All finetunes, oldest first; empty if the server keeps none."""
    uploads = request.app[ADAPTERS].uploads
    return [] if uploads is None else [record for record in uploads if record.model in MODELS]


def _finetunes(request: web.Request) -> Uploads:
    uploads = request.app[ADAPTERS].uploads
    if uploads is None:
        raise AdapterError("this server keeps no finetunes; start it with --adapters DIR or --state-dir DIR")
    return uploads


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} must be a string")
    return value


def _count(text: str | None) -> int | None:
    """A count of the query string; a value that is not a count is taken as absent."""
    return int(text) if text is not None and text.isascii() and text.isdecimal() and len(text) < 10 else None


def _time(moment: datetime) -> str:
    """RFC 3339, in UTC, to the microsecond."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _answer(result: Any) -> web.Response:
    return web.Response(body=render_envelope(result), headers={"Content-Type": "application/json"})
