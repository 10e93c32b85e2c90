"""``GET /`` for browsers, and ``/playground/...`` for what the page loads. Nothing here needs a token.

The page holds no secret and asks the API with the token that its reader enters. It may load and call nothing but this
server, may not be framed, and runs no inline script: see ``HEADERS``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from aiohttp import web

from runtime.errors import UnknownRoute
from runtime.playground.files import INDEX, PageFile, read_page
from runtime.web import plain
from runtime.web.dialect import ErrorFormat

_FILES: Final = web.AppKey("playground_files", Mapping[str, PageFile])
_PREFIX: Final = "/playground/"

HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": "; ".join(
        [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self'",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            # Text becomes HTML in one place, DOMPurify; a browser that knows this rule refuses every other.
            "require-trusted-types-for 'script'",
            "trusted-types dompurify",
        ]
    ),
    "Cache-Control": "no-cache",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""What every file of the page is sent with. Source: W3C, "Content Security Policy Level 3" and "Trusted Types"."""


async def page(request: web.Request) -> web.Response:
    """``GET /``: the page, for clients that ask for HTML.

    Raises:
        UnknownRoute: the client does not; API clients at this path have a wrong address.
    """
    if not _wants_html(request):
        raise UnknownRoute("no such path; a browser finds the playground here, and GET /openapi.json lists the API")
    return _send(request, request.app[_FILES][INDEX])


async def file(request: web.Request) -> web.Response:
    """``GET /playground/{path}``: one file of the page.

    Raises:
        UnknownRoute: there is no such file.
    """
    found = request.app[_FILES].get(request.match_info["path"])
    if found is None:
        raise UnknownRoute("the playground has no such file")
    return _send(request, found)


def add_routes(app: web.Application) -> None:
    """The files; the application itself registers ``page``, which shares its path with another dialect."""
    app[_FILES] = read_page()
    app.router.add_get(_PREFIX + "{path:.+}", file)


def _send(request: web.Request, found: PageFile) -> web.Response:
    headers = {**HEADERS, "ETag": found.etag}
    if request.headers.get("If-None-Match") == found.etag:
        return web.Response(status=304, headers=headers)
    return web.Response(body=found.body, headers={**headers, "Content-Type": found.content_type})


def _wants_html(request: web.BaseRequest) -> bool:
    return "text/html" in request.headers.get("Accept", "")


def _is_mine(request: web.BaseRequest) -> bool:
    """The page's files, and ``/`` as a browser asks for it."""
    if request.path == "/":
        return request.method in ("GET", "HEAD") and _wants_html(request)
    return request.path.startswith(_PREFIX)


ERROR_FORMAT: Final = ErrorFormat(_is_mine, plain.headers, plain.render_error, is_open=True)
