"""A multipart upload: small fields into memory, the one file onto disk, both bounded as they come."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aiohttp import BodyPartReader, web
from aiohttp.http_exceptions import HttpProcessingError

from runtime.adapters.uploads import ReceivedFile
from runtime.errors import InvalidRequest, RequestTimeout, RequestTooLarge, StorageError

_MAX_FIELD_BYTES: Final = 4096
_MAX_PARTS: Final = 16
_CHUNK_BYTES: Final = 1 << 20
_OVERHEAD_BYTES: Final = 1 << 16  # boundaries, headers and the fields

_READER_ERRORS: Final = (ValueError, AssertionError, RuntimeError, HttpProcessingError, web.RequestPayloadError)
"""What aiohttp's multipart reader raises at a body: it asserts where one ends too early, and has a ``RuntimeError`` for
a long ``_charset_`` and a ``BadHttpMessage`` for too many headers of a part (aiohttp multipart.py)."""


@dataclass(frozen=True, slots=True)
class Form:
    """What came: text fields by name, and the part called ``file``."""

    fields: dict[str, str]
    file: ReceivedFile


@contextlib.asynccontextmanager
async def receive(request: web.Request, folder: Path, *, max_bytes: int, limit_s: float) -> AsyncIterator[Form]:
    """Take in the form; the file lies in ``folder`` while the context lasts, unless it is moved away.

    Raises:
        InvalidRequest: not a multipart form, cut off, or without its file.
        RequestTooLarge: the file is larger than ``max_bytes``.
        RequestTimeout: it did not come within ``limit_s`` seconds.
        StorageError: it cannot be written.
    """
    if not request.content_type.startswith("multipart/"):
        raise InvalidRequest(f"an upload is a multipart form, not {request.content_type[:100]}")
    if (request.content_length or 0) > max_bytes + _OVERHEAD_BYTES:
        raise _too_large(max_bytes)
    with _storage():
        place = tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True)
    with place as directory:
        try:
            async with asyncio.timeout(limit_s):
                form = await _read(request, Path(directory) / "file", max_bytes)
        except TimeoutError:
            raise RequestTimeout(f"the upload did not come within {limit_s:g} s") from None
        except _READER_ERRORS as error:
            raise InvalidRequest(f"the body is not a whole multipart form: {error}") from None
        yield form


async def _read(request: web.Request, path: Path, max_bytes: int) -> Form:
    fields: dict[str, str] = {}
    file: ReceivedFile | None = None
    n_parts = 0
    if "Content-Type" not in request.headers:
        raise InvalidRequest("the body must be a multipart form; it has no Content-Type")
    async for part in await request.multipart():
        n_parts += 1
        if not isinstance(part, BodyPartReader) or n_parts > _MAX_PARTS:
            raise InvalidRequest(f"a form may have {_MAX_PARTS} plain parts at most")
        if part.name == "file":
            file = await _read_file(part, path, max_bytes)
        elif part.name is not None:
            fields[part.name] = await _read_field(part)
    if file is None:
        raise InvalidRequest("the form has no part named file")
    return Form(fields, file)


async def _read_field(part: BodyPartReader) -> str:
    content = b""
    while chunk := await part.read_chunk(_MAX_FIELD_BYTES):
        content += chunk
        if len(content) > _MAX_FIELD_BYTES:
            raise InvalidRequest(f"the field {str(part.name)[:100]!r} is over {_MAX_FIELD_BYTES} bytes")
    return content.decode()


async def _read_file(part: BodyPartReader, path: Path, max_bytes: int) -> ReceivedFile:
    """The part on disk; a slow disk holds up nobody else."""
    digest, size_bytes = hashlib.sha256(), 0
    with _storage():
        file = path.open("wb")
    with file:
        while chunk := await part.read_chunk(_CHUNK_BYTES):
            size_bytes += len(chunk)
            if size_bytes > max_bytes:
                raise _too_large(max_bytes)
            digest.update(chunk)
            with _storage():
                await asyncio.to_thread(file.write, chunk)
        with _storage():
            file.flush()
    return ReceivedFile(path, digest.hexdigest())


def _too_large(max_bytes: int) -> RequestTooLarge:
    return RequestTooLarge(f"a file may have {max_bytes} bytes at most")


@contextlib.contextmanager
def _storage() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"the upload cannot be written: {error.strerror}") from error
