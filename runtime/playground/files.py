"""The files of the page, read once from the installed package. Pure: knows no request."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Final

INDEX: Final = "index.html"
_TYPES: Final[Mapping[str, str]] = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "json": "application/json",
    "mjs": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
}
"""Content types by the name's ending. A browser refuses modules and style sheets that come under another type."""


@dataclass(frozen=True, slots=True)
class PageFile:
    """One file: its bytes, its content type, and an entity tag made from the bytes."""

    body: bytes
    content_type: str
    etag: str


def read_page() -> Mapping[str, PageFile]:
    """Every file of the page by its path below ``page/``, with ``/`` between folders.

    Raises:
        KeyError: a file's ending has no content type here.
    """
    return {path: _page_file(path, body) for path, body in _walk(resources.files("runtime.playground") / "page", "")}


def _walk(folder: Traversable, prefix: str) -> Iterator[tuple[str, bytes]]:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _walk(entry, f"{prefix}{entry.name}/")
        else:
            yield prefix + entry.name, entry.read_bytes()


def _page_file(path: str, body: bytes) -> PageFile:
    ending = path.rpartition(".")[2]
    return PageFile(body, _TYPES[ending], f'"{hashlib.sha256(body).hexdigest()[:32]}"')
