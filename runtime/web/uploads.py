"""An upload: small fields of a form into memory, files onto disk, both bounded as they come."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import tempfile
from collections.abc import AsyncIterable, AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aiohttp import BodyPartReader, web
from aiohttp.http_exceptions import HttpProcessingError

from runtime.adapters.uploads import ReceivedFile
from runtime.errors import InvalidRequest, RequestTimeout, RequestTooLarge, StorageError

_MAX_FIELD_BYTES: Final = 4096
_MAX_PARTS: Final = 16
_MAX_FILES: Final = 3
"""Files of one form: an adapter has two, and some clients send a README along."""
_CHUNK_BYTES: Final = 1 << 20
_OVERHEAD_BYTES: Final = 1 << 16  # boundaries, headers and the fields

_READER_ERRORS: Final = (ValueError, AssertionError, RuntimeError, HttpProcessingError, web.RequestPayloadError)
"""What aiohttp's multipart reader raises at a body: it asserts where one ends too early, and has a ``RuntimeError`` for
a long ``_charset_`` and a ``BadHttpMessage`` for too many headers of a part (aiohttp multipart.py)."""


@dataclass(frozen=True, slots=True)
class FormFile:
    """One file of a form: the name of its part, the file name that the client gave it, and its content."""

    part: str
    name: str
    content: ReceivedFile


@dataclass(frozen=True, slots=True)
class Form:
    """What came: text fields by name, and the files."""

    fields: Mapping[str, str]
    files: tuple[FormFile, ...]

    @property
    def file(self) -> ReceivedFile:
        """The file of the part called ``file``.

        Raises:
            InvalidRequest: there is no such part.
        """
        for file in self.files:
            if file.part == "file":
                return file.content
        raise InvalidRequest("the form has no part named file")


@contextlib.asynccontextmanager
async def receive(request: web.Request, folder: Path, *, max_bytes: int, limit_s: float) -> AsyncIterator[Form]:
    """Take in a form; its files lie in ``folder`` while the context lasts, unless they are moved away.

    Raises:
        InvalidRequest: not a multipart form, or cut off.
        RequestTooLarge: a file is larger than ``max_bytes``.
        RequestTimeout: it did not come within ``limit_s`` seconds.
        StorageError: it cannot be written.
    """
    if not request.content_type.startswith("multipart/"):
        raise InvalidRequest(f"an upload is a multipart form, not {request.content_type[:100]}")
    if "Content-Type" not in request.headers:
        raise InvalidRequest("the body must be a multipart form; it has no Content-Type")
    if (request.content_length or 0) > _MAX_FILES * max_bytes + _OVERHEAD_BYTES:
        raise _too_large(max_bytes)
    async with _place(folder, limit_s) as (place, limit):
        try:
            async with limit:
                form = await _read(request, place, max_bytes)
        except TimeoutError:
            raise RequestTimeout(f"the upload did not come within {limit_s:g} s") from None
        except _READER_ERRORS as error:
            raise InvalidRequest(f"the body is not a whole multipart form: {error}") from None
        yield form


@contextlib.asynccontextmanager
async def receive_body(
    request: web.Request, folder: Path, *, max_bytes: int, limit_s: float
) -> AsyncIterator[ReceivedFile]:
    """Take in a body that is one file; it lies in ``folder`` while the context lasts, unless it is moved away.

    Raises:
        InvalidRequest: there is no body, or it is cut off.
        RequestTooLarge, RequestTimeout, StorageError: as ``receive``.
    """
    if (request.content_length or 0) > max_bytes:
        raise _too_large(max_bytes)
    async with _place(folder, limit_s) as (place, limit):
        try:
            async with limit:
                received = await _write(request.content.iter_chunked(_CHUNK_BYTES), place / "body", max_bytes)
        except TimeoutError:
            raise RequestTimeout(f"the upload did not come within {limit_s:g} s") from None
        except (web.RequestPayloadError, HttpProcessingError) as error:
            raise InvalidRequest(f"the body is cut off: {error}") from None
        if not received.path.stat().st_size:
            raise InvalidRequest("the request has no body; send the adapter's file")
        yield received


@contextlib.asynccontextmanager
async def _place(folder: Path, limit_s: float) -> AsyncIterator[tuple[Path, asyncio.Timeout]]:
    """A folder for the files of one request, and the time it has."""
    with _storage():
        place = tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True)
    with place as directory:
        yield Path(directory), asyncio.timeout(limit_s)


async def _read(request: web.Request, place: Path, max_bytes: int) -> Form:
    fields: dict[str, str] = {}
    files: list[FormFile] = []
    n_parts = 0
    async for part in await request.multipart():
        n_parts += 1
        if not isinstance(part, BodyPartReader) or n_parts > _MAX_PARTS:
            raise InvalidRequest(f"a form may have {_MAX_PARTS} plain parts at most")
        if part.name == "file" or part.filename is not None:
            if len(files) == _MAX_FILES:
                raise InvalidRequest(f"a form may have {_MAX_FILES} files at most")
            content = await _write(_chunks(part), place / str(len(files)), max_bytes)
            files.append(FormFile(part.name or "", part.filename or "", content))
        elif part.name is not None:
            fields[part.name] = await _read_field(part)
    return Form(fields, tuple(files))


async def _chunks(part: BodyPartReader) -> AsyncIterator[bytes]:
    while chunk := await part.read_chunk(_CHUNK_BYTES):
        yield chunk


async def _read_field(part: BodyPartReader) -> str:
    content = b""
    while chunk := await part.read_chunk(_MAX_FIELD_BYTES):
        content += chunk
        if len(content) > _MAX_FIELD_BYTES:
            raise InvalidRequest(f"the field {str(part.name)[:100]!r} is over {_MAX_FIELD_BYTES} bytes")
    return content.decode()


async def _write(chunks: AsyncIterable[bytes], path: Path, max_bytes: int) -> ReceivedFile:
    """The chunks on disk; a slow disk holds up no other request."""
    digest, size_bytes = hashlib.sha256(), 0
    with _storage():
        file = path.open("wb")
    with file:
        async for chunk in chunks:
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
