"""``/adapters``: every adapter listed, added, replaced, removed and pinned; the store does the work.

vLLM's two routes for adapters and llama-server's list are here under their own names, since clients have them.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

from aiohttp import web

from runtime.adapters.package import copy_from
from runtime.adapters.uploads import Uploads
from runtime.adapters.views import AdapterView, Source
from runtime.admin import wire
from runtime.admin.errors import render_error
from runtime.errors import AdapterConflict, AdapterError, InvalidRequest, UnknownAdapter
from runtime.web.body import parse_json_object, render_json
from runtime.web.dialect import ErrorAnswer, ErrorFormat
from runtime.web.keys import ADAPTERS, ENGINE, LIMITS, SETTINGS, STORE, TOKENS
from runtime.web.limits import read_body
from runtime.web.uploads import Form, receive, receive_body

_LIST: Final = "/adapters"
_ONE: Final = "/adapters/{adapter}"
_RESCAN: Final = "/adapters:rescan"
_WHOLE: Final = "body"
"""The name of an uploaded file where the request is not a form."""


async def list_all(request: web.Request) -> web.Response:
    """``GET /adapters``."""
    return _json(_everything(request))


async def get_one(request: web.Request) -> web.Response:
    """``GET /adapters/{name or id}``; the digest is its ETag."""
    return _answer(request, _view(request))


async def put(request: web.Request) -> web.Response:
    """``PUT /adapters/{name}``: add or replace; answered once the adapter is served."""
    uploads, name = _uploads(request), request.match_info["adapter"]
    expected, must_be_new = wire.parse_if_match(request.headers), wire.parse_if_none_match(request.headers)
    async with _received(request, uploads.state.incoming) as files:
        view, is_new = await uploads.put(name, files, expected_digest=expected, must_be_new=must_be_new)
    return _answer(request, view, 201 if is_new else 200)


async def add_path(request: web.Request) -> web.Response:
    """``POST /adapters``: add or replace from a path below the adapters folder."""
    name, path = wire.parse_text(await _object(request), "name", "path")
    must_be_new = wire.parse_if_none_match(request.headers)
    view, is_new = await _put_path(request, name, path, must_be_new=must_be_new)
    return _answer(request, view, 201 if is_new else 200)


async def patch(request: web.Request) -> web.Response:
    """``PATCH /adapters/{name or id}``: pin or unpin."""
    is_pinned = wire.parse_pin(await _object(request))
    view = await request.app[STORE].pin(_view(request).id, is_pinned=is_pinned)
    return _answer(request, view)


async def delete(request: web.Request) -> web.Response:
    """``DELETE /adapters/{name or id}``: answers that run under it are finished."""
    return _json(await _remove(request, _view(request), wire.parse_if_match(request.headers)))


async def rescan(request: web.Request) -> web.Response:
    """``POST /adapters:rescan``: look at the folder now; answered once what has changed is served or refused.

    Raises:
        AdapterError: the server has no adapters folder.
    """
    folder = request.app[ADAPTERS].folder
    if folder is None:
        raise AdapterError("this server has no adapters folder; start it with --adapters DIR")
    await folder.rescan()
    return _json(_everything(request))


async def load_lora_adapter(request: web.Request) -> web.Response:
    """VLLM's ``POST /v1/load_lora_adapter``; the path lies below the adapters folder."""
    body = await _object(request)
    name, path = wire.parse_text(body, "lora_name", "lora_path")
    await _put_path(request, name, path, must_be_new=not body.get("load_inplace"))
    return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")


async def unload_lora_adapter(request: web.Request) -> web.Response:
    """VLLM's ``POST /v1/unload_lora_adapter``.

    Raises:
        UnknownAdapter: no adapter has that name.
    """
    (name,) = wire.parse_text(await _object(request), "lora_name")
    view = request.app[STORE].find(name)
    if view is None:
        raise UnknownAdapter("there is no such adapter", name)
    await _remove(request, view, None)
    return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")


async def llama_server_list(request: web.Request) -> web.Response:
    """llama-server's ``GET /lora-adapters``."""
    return _json(wire.render_llama_server(request.app[STORE].usable()))


def add_routes(app: web.Application) -> None:
    """Everything about adapters; what changes something needs a token for that, where tokens are used."""
    app.router.add_get(_LIST, list_all)
    app.router.add_get(_ONE, get_one)
    app.router.add_get("/lora-adapters", llama_server_list)
    for method, path, handler in (
        ("PUT", _ONE, put),
        ("PATCH", _ONE, patch),
        ("DELETE", _ONE, delete),
        ("POST", _LIST, add_path),
        ("POST", _RESCAN, rescan),
        ("POST", "/v1/load_lora_adapter", load_lora_adapter),
        ("POST", "/v1/unload_lora_adapter", unload_lora_adapter),
    ):
        app.router.add_route(method, path, _guarded(handler))


def _guarded(handler: Any) -> Any:
    """The handler, behind the tokens that may change adapters."""

    async def guarded(request: web.Request) -> web.StreamResponse:
        request.app[TOKENS].check_admin(request.headers)
        return await handler(request)  # type: ignore[no-any-return]

    return guarded


@asynccontextmanager
async def _received(request: web.Request, folder: Path) -> AsyncIterator[Mapping[str, Path]]:
    """The files of an upload, by their names, each compared with the SHA-256 that was sent along.

    Raises:
        InvalidRequest: there is no file, two have one name, or one is not what its SHA-256 says.
        RequestTooLarge, RequestTimeout, StorageError: as ``uploads.receive``.
    """
    limit_s, max_bytes = request.app[LIMITS].upload_s, request.app[SETTINGS].max_adapter_mib << 20
    if request.content_type.startswith("multipart/"):
        async with receive(request, folder, max_bytes=max_bytes, limit_s=limit_s) as form:
            yield _files(form)
        return
    expected = wire.parse_sha256(request.query.get("sha256"))
    async with receive_body(request, folder, max_bytes=max_bytes, limit_s=limit_s) as file:
        _check_digest(_WHOLE, file.digest, expected)
        yield {_WHOLE: file.path}


def _files(form: Form) -> dict[str, Path]:
    files = {}
    for file in form.files:
        name = unquote(file.name).replace("\\", "/").rpartition("/")[2] or file.part  # some clients escape slashes
        is_only = len(form.files) == 1
        expected = form.fields.get(f"sha256.{name}", form.fields.get("sha256") if is_only else None)
        _check_digest(name, file.content.digest, wire.parse_sha256(expected))
        if name in files:
            raise InvalidRequest(f"the form has two files called {name[:200]!r}")
        files[name] = file.content.path
    if not files:
        raise InvalidRequest("the form has no file")
    return files


def _check_digest(name: str, digest: str, expected: str | None) -> None:
    if expected is not None and not hmac.compare_digest(digest, expected):
        raise InvalidRequest(f"{name[:200]} arrived with the SHA-256 {digest}, not {expected}; send it again")


async def _put_path(request: web.Request, name: str, path: str, *, must_be_new: bool) -> tuple[AdapterView, bool]:
    uploads, folder = _uploads(request), request.app[SETTINGS].adapters
    if not folder:
        raise AdapterError(
            "paths lie below the adapters folder, and this server has none; start it with --adapters DIR"
        )
    expected = wire.parse_if_match(request.headers)
    with uploads.state.workplace() as place:
        files = await asyncio.to_thread(copy_from, Path(folder), path, place)
        return await uploads.put(name, files, expected_digest=expected, must_be_new=must_be_new)


async def _remove(request: web.Request, view: AdapterView, expected: str | None) -> dict[str, Any]:
    """The adapter as it is then."""
    if view.adapter.source is Source.FOLDER:
        location = view.adapter.location
        raise AdapterConflict(
            f"{view.name!r} lies in the adapters folder as {location!r}; remove it there, and it retires"
        )
    return wire.render_adapter(await _uploads(request).remove(view.id, expected), _resident(request))


def _everything(request: web.Request) -> dict[str, Any]:
    server, ready, uploads = request.app[SETTINGS], request.app[ENGINE].ready, request.app[ADAPTERS].uploads
    limits = {
        "max_adapters": server.max_adapters,
        "max_adapter_bytes": server.max_adapter_mib << 20,
        "max_disk_bytes": server.adapter_disk_mib << 20,
        "disk_bytes": uploads.state.blob_bytes() if uploads is not None else 0,
    }
    status = "starting" if ready is None else ready.adapter_batching
    return wire.render_list(request.app[STORE].snapshot(), _resident(request), limits) | {"adapter_batching": status}


def _view(request: web.Request) -> AdapterView:
    name = request.match_info["adapter"]
    view = request.app[STORE].find(name)
    if view is None:
        raise UnknownAdapter(f"there is no adapter {name[:200]!r}; GET /adapters lists those there are", name)
    return view


def _uploads(request: web.Request) -> Uploads:
    uploads = request.app[ADAPTERS].uploads
    if uploads is None:
        raise AdapterError("this server keeps no uploads; start it with --adapters DIR or --state-dir DIR")
    return uploads


def _resident(request: web.Request) -> frozenset[str]:
    """The digests of adapters that have a lane, by the engine's last report."""
    stats = request.app[ENGINE].stats
    return frozenset(stats.lanes.resident) if stats is not None else frozenset()


async def _object(request: web.Request) -> dict[str, Any]:
    return parse_json_object(await read_body(request, request.app[LIMITS]))


def _answer(request: web.Request, view: AdapterView, status: int = 200) -> web.Response:
    headers = {"ETag": f'"{view.digest}"'} if view.digest else {}
    return _json(wire.render_adapter(view, _resident(request)), status, headers)


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(
        status=status, body=render_json(value), headers={"Content-Type": "application/json", **(headers or {})}
    )


def _render_error(error: Exception, request_id: str) -> ErrorAnswer:
    return ErrorAnswer(*render_error(error, request_id))


def _is_mine(request: web.BaseRequest) -> bool:
    return request.path == _RESCAN or request.path in (_LIST, "/lora-adapters") or request.path.startswith(f"{_LIST}/")


ERROR_FORMAT: Final = ErrorFormat(_is_mine, lambda request_id: {"X-Request-Id": request_id}, _render_error)
