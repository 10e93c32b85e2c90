"""The page and its files by HTTP: who gets them, with which headers, and what stays what it was at ``/``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from aiohttp import ClientSession

from runtime.playground.files import read_page
from tests.runtime.conftest import Serve

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


async def test_a_browser_gets_the_page(client: ClientSession) -> None:
    """``GET /`` with ``Accept: text/html`` answers with index.html."""
    async with client.get("/", headers=BROWSER) as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "text/html; charset=utf-8"
        assert await response.read() == read_page()["index.html"].body


@pytest.mark.parametrize("accept", ["*/*", "application/json", ""])
async def test_other_clients_hear_that_the_path_is_wrong(client: ClientSession, accept: str) -> None:
    """A client that does not ask for HTML at ``/`` gets a 404 in JSON that names the right places."""
    async with client.get("/", headers={"Accept": accept}) as response:
        assert response.status == 404
        error = (await response.json())["error"]
        assert error["code"] == "unknown_route"
        assert "/openapi.json" in error["message"]


async def test_the_bindings_proxy_keeps_its_calls_at_the_root(client: ClientSession) -> None:
    """A GET with ``MF-URL`` is the Worker binding's, whatever it accepts; a POST without it is unknown."""
    headers = {**BROWSER, "MF-URL": "https://workers-binding.ai/ai-api/models/search"}
    async with client.get("/", headers=headers) as response:
        assert response.status == 200
        assert (await response.json())["success"] is True
    async with client.post("/", json={}, headers=BROWSER) as response:
        assert response.status == 404


async def test_every_file_is_served_under_its_type_and_never_sniffed(client: ClientSession) -> None:
    """Each file of the package comes back byte for byte, with its type, the policy and ``nosniff``."""
    page = read_page()
    assert {"app.js", "css/base.css", "vendor/purify.es.mjs"} <= set(page)
    for path, file in page.items():
        async with client.get(f"/playground/{path}") as response:
            assert response.status == 200, path
            assert await response.read() == file.body
            assert response.headers["Content-Type"] == file.content_type
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert response.headers["X-Frame-Options"] == "DENY"


async def test_the_policy_allows_nothing_from_elsewhere_and_nothing_inline(client: ClientSession) -> None:
    """Every source in the policy is ``'self'`` or ``'none'``; scripts cannot make HTML but through DOMPurify."""
    async with client.get("/", headers=BROWSER) as response:
        policy = dict(part.strip().split(" ", 1) for part in response.headers["Content-Security-Policy"].split(";"))
    assert policy.pop("require-trusted-types-for") == "'script'"
    assert policy.pop("trusted-types") == "dompurify"
    assert set(policy.values()) == {"'self'", "'none'"}
    assert policy["default-src"] == policy["frame-ancestors"] == policy["form-action"] == policy["base-uri"] == "'none'"


async def test_an_unchanged_file_is_not_sent_again(client: ClientSession) -> None:
    """A request with the file's entity tag is answered 304 without a body."""
    async with client.get("/playground/app.js") as response:
        tag = response.headers["ETag"]
    async with client.get("/playground/app.js", headers={"If-None-Match": tag}) as response:
        assert response.status == 304
        assert await response.read() == b""


@pytest.mark.parametrize("path", ["nothing.js", "../files.py", "%2e%2e/routes.py", "css", "vendor/", "css/base.css%00"])
async def test_only_files_of_the_page_are_served(client: ClientSession, path: str) -> None:
    """A path that is not a file of the page is a 404, also one that climbs out of it."""
    async with client.get(f"/playground/{path}", headers=BROWSER) as response:
        assert response.status == 404


async def test_the_page_needs_no_token_and_the_api_does(serve: Serve, tmp_path: Path) -> None:
    """Where tokens are used, the page and its files are open; ``/``, asked for as an API, is not."""
    (tmp_path / "tokens").write_text("secret\n")
    client = await serve(token_file=str(tmp_path / "tokens"))
    for path in ("/", "/playground/app.js"):
        async with client.get(path, headers=BROWSER) as response:
            assert response.status == 200
    for path, headers in (("/v1/models", BROWSER), ("/", {"Accept": "*/*"})):
        async with client.get(path, headers=headers) as response:
            assert response.status == 401, path


async def test_the_page_changes_nothing(client: ClientSession) -> None:
    """Only GET and HEAD are known below ``/playground``."""
    async with client.post("/playground/app.js", data=b"x") as response:
        assert response.status == 405
        assert json.loads(await response.read())["error"]["code"] == "method_not_allowed"
    async with client.head("/", headers=BROWSER) as response:
        assert response.status == 200
