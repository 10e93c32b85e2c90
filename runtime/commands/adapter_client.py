"""The admin API of a running server, for commands: over the standard library's HTTP client."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from tqdm import tqdm

from runtime.commands.stream import Address, error_words
from runtime.errors import GemlaneError, ServerRefused, ServerUnreachable

_FILES: Final = ("adapter_config.json", "adapter_model.safetensors", "adapters.safetensors")
_CONVERSION_TIMEOUT_S: Final = 3600.0
"""An upload is answered once the adapter is served; a conversion may take minutes."""
_CHUNK_BYTES: Final = 1 << 20
_BLOCK_BYTES: Final = 512  # of a tar


def path_of(name: str) -> str:
    """The path of one adapter."""
    return f"/adapters/{quote(name, safe='')}"


def ask(
    address: Address, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The JSON that the server answers.

    Raises:
        ServerUnreachable: nothing listens there.
        ServerRefused: the answer is an error.
    """
    return _send(address, method, path, None if body is None else json.dumps(body).encode(), headers or {})


def upload(address: Address, name: str, source: Path, headers: Mapping[str, str]) -> dict[str, Any]:
    """Send a GGUF file, or of a folder a tar of the files that count; the answer comes once the adapter is served.

    Raises:
        GemlaneError: ``source`` holds no adapter, or cannot be read.
        ServerUnreachable, ServerRefused: as ``ask``.
    """
    read, size_bytes, kind = _contents(source)
    digest = hashlib.sha256()
    try:
        for piece in read():
            digest.update(piece)
        whole = {"Content-Type": kind, "Content-Length": str(size_bytes), **headers}
        path = f"{path_of(name)}?sha256={digest.hexdigest()}"
        return _send(address, "PUT", path, _shown(read(), size_bytes), whole)
    except OSError as error:
        raise GemlaneError(f"cannot read {error.filename or source}: {error.strerror or error}") from error


def _contents(source: Path) -> tuple[Callable[[], Iterator[bytes]], int, str]:
    """How to read what is sent, its size in bytes, and its content type."""
    if not source.is_dir():
        return lambda: _read(source), source.stat().st_size, "application/octet-stream"
    files = [source / name for name in _FILES if (source / name).is_file()]
    if len(files) < 2:
        raise GemlaneError(f"{source} holds no adapter: {_FILES[0]} is needed, and {_FILES[1]} or {_FILES[2]}")
    sizes = (path.stat().st_size for path in files)
    size_bytes = 2 * _BLOCK_BYTES + sum(_BLOCK_BYTES + size + -size % _BLOCK_BYTES for size in sizes)
    return lambda: _tar(files), size_bytes, "application/x-tar"


def _read(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_CHUNK_BYTES):
            yield piece


def _tar(files: list[Path]) -> Iterator[bytes]:
    for path in files:
        info = tarfile.TarInfo(path.name)
        info.size = path.stat().st_size
        yield info.tobuf(tarfile.USTAR_FORMAT)
        yield from _read(path)
        yield bytes(-info.size % _BLOCK_BYTES)
    yield bytes(2 * _BLOCK_BYTES)


def _shown(pieces: Iterator[bytes], size_bytes: int) -> Iterator[bytes]:
    """The pieces, with a progress bar where stderr is a terminal."""
    with tqdm(total=size_bytes, unit="B", unit_scale=True, desc="sending", leave=False, disable=None) as bar:
        for piece in pieces:
            yield piece
            bar.update(len(piece))


def _send(
    address: Address, method: str, path: str, data: bytes | Iterator[bytes] | None, headers: Mapping[str, str]
) -> dict[str, Any]:
    connection = address.connect()
    with contextlib.closing(connection):
        try:
            connection.connect()
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ServerUnreachable(
                f"no server answers at {address.url}: {reason}; start one with gemlane serve, or name it with --url"
            ) from error
        connection.sock.settimeout(_CONVERSION_TIMEOUT_S)
        # A server that refuses an upload may answer before it has read all of it.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.request(method, path, data, {**address.headers, **headers})
        return _answer(connection, address)


def _answer(connection: http.client.HTTPConnection, address: Address) -> dict[str, Any]:
    try:
        response = connection.getresponse()
        status, content = response.status, response.read()
    except (OSError, http.client.HTTPException) as error:
        raise ServerRefused(f"{address.url} closed the connection before it answered") from error
    try:
        answer = json.loads(content)
    except ValueError as error:
        raise ServerRefused(f"{address.url} did not answer with JSON ({status}); is it a gemlane server?") from error
    if status >= http.client.BAD_REQUEST:
        needs_token = status in (http.client.UNAUTHORIZED, http.client.FORBIDDEN)
        hint = "; give a token with --token-file or GEMLANE_TOKEN" if needs_token else ""
        raise ServerRefused(error_words(answer) + hint)
    return dict(answer)
