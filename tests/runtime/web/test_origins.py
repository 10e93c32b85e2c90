"""Which web pages may ask, and under which names the server answers."""

from pathlib import Path

import pytest

from runtime.errors import ConfigError, ForeignOrigin
from runtime.web.origins import Origins, is_own_name, parse_origins
from tests.runtime.conftest import Serve

PREFLIGHT = {
    "Origin": "https://page.example",
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
}
HI = {"model": "gemma-7b-it-lora", "messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize(
    ("host", "is_own"),
    [
        ("localhost", True),
        ("localhost:8080", True),
        ("LocalHost.:8080", True),
        ("127.0.0.1:8080", True),
        ("127.9.9.9", True),
        ("[::1]:8080", True),
        ("gemlane.localhost:80", True),
        ("host.docker.internal:8080", True),
        ("workers-binding.ai", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example:8080", False),
        ("localhost.evil.example", False),
        ("0.0.0.0:8080", False),
        ("192.168.0.5:8080", False),
        ("evil.example:127", False),
    ],
)
def test_names_of_this_machine(host: str, is_own: bool) -> None:
    """Loopback addresses and names that other people cannot redirect belong to this machine."""
    assert is_own_name(host) == is_own
    if not is_own:
        with pytest.raises(ForeignOrigin, match="names of loopback"):
            Origins().check({"Host": host})
        Origins(has_any_name=True).check({"Host": host})


@pytest.mark.parametrize(
    ("text", "origin", "is_allowed"),
    [
        ("https://page.example", "https://page.example", True),
        ("https://page.example/, null", "null", True),
        ("HTTPS://Page.Example", "https://page.example", True),
        ("app://", "app://obsidian.md", True),
        ("vscode-webview://", "vscode-webview://1a2b3c", True),
        ("https://page.example", "http://page.example", False),
        ("https://page.example", "https://page.example.evil.example", False),
        ("app://", "apple://x", False),
        ("", "null", False),
    ],
)
def test_allowed_origins(text: str, origin: str, is_allowed: bool) -> None:
    """An origin is allowed by its whole name, or by its scheme."""
    headers = {"Host": "localhost:8080", "Origin": origin}
    if is_allowed:
        parse_origins(text).check(headers)
    else:
        with pytest.raises(ForeignOrigin, match=f"--allow-origin {origin}"):
            parse_origins(text).check(headers)


@pytest.mark.parametrize("text", ["*", "page.example", "https://a b", "null null"])
def test_what_is_no_origin(text: str) -> None:
    """A mistake in ``--allow-origin`` ends the start."""
    with pytest.raises(ConfigError, match="--allow-origin"):
        parse_origins(text)


async def test_with_tokens_every_page_may_ask(serve: Serve, tmp_path: Path) -> None:
    """A preflight passes without a token, and every answer can be read: answers, streams, refusals, unknown paths."""
    (tmp_path / "tokens").write_text("secret\n")
    client = await serve(token_file=str(tmp_path / "tokens"))
    async with client.options("/v1/chat/completions", headers=PREFLIGHT) as response:
        assert response.status == 204
        assert await response.read() == b""
        assert response.headers["Access-Control-Allow-Origin"] == "*"
        assert response.headers["Access-Control-Allow-Headers"] == PREFLIGHT["Access-Control-Request-Headers"]
        assert "POST" in response.headers["Access-Control-Allow-Methods"]
        assert "Access-Control-Allow-Credentials" not in response.headers
    origin = {"Origin": "https://page.example"}
    token = origin | {"Authorization": "Bearer secret"}
    asked = [
        (client.post("/v1/chat/completions", json=HI, headers=token), 200),
        (client.post("/v1/chat/completions", json=HI | {"stream": True}, headers=token), 200),
        (client.post("/v1/chat/completions", json=HI, headers=origin), 401),
        (client.get("/nowhere", headers=token), 404),
        (client.options("/v1/chat/completions", headers=token), 405),
    ]
    for request, status in asked:
        async with request as response:
            assert response.status == status
            assert response.headers["Access-Control-Allow-Origin"] == "*"


async def test_without_tokens_named_pages_may_ask(serve: Serve) -> None:
    """A page that ``--allow-origin`` names may ask; another is refused before anything happens and cannot read why."""
    client = await serve(allow_origin="https://page.example")
    async with client.options("/v1/chat/completions", headers=PREFLIGHT) as response:
        assert (response.status, response.headers["Access-Control-Allow-Origin"]) == (204, "https://page.example")
        assert response.headers["Vary"] == "Origin"
    async with client.post("/v1/chat/completions", json=HI, headers={"Origin": "https://page.example"}) as response:
        assert (response.status, response.headers["Access-Control-Allow-Origin"]) == (200, "https://page.example")
    evil = PREFLIGHT | {"Origin": "https://evil.example"}
    async with client.options("/v1/chat/completions", headers=evil) as response:
        assert response.status == 403
        assert "Access-Control-Allow-Origin" not in response.headers
        assert "--allow-origin https://evil.example" in (await response.json())["error"]["message"]


async def test_a_name_that_was_pointed_at_loopback_reads_nothing(serve: Serve) -> None:
    """A page's GET on its own name has no Origin, and is refused by its Host."""
    client = await serve()
    for path in ("/v1/models", "/client/v4/accounts/a/ai/models/search", "/openapi.json"):
        async with client.get(path, headers={"Host": "evil.example"}) as response:
            assert response.status == 403
    async with client.get("/health", headers={"Host": "evil.example"}) as response:
        assert await response.json() == {"status": "ok"}


async def test_a_private_network_preflight(serve: Serve) -> None:
    """The preflight that Chromium sends for a private address is answered for a page that is named."""
    client = await serve(allow_origin="https://page.example")
    headers = PREFLIGHT | {"Access-Control-Request-Private-Network": "true"}
    async with client.options("/v1/models", headers=headers) as response:
        assert response.headers["Access-Control-Allow-Private-Network"] == "true"
