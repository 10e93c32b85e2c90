"""Who may ask."""

from pathlib import Path

import pytest

from runtime.config import ServerSettings
from runtime.errors import ConfigError, ForeignOrigin, MalformedCredentials, MissingCredentials, Unauthorized
from runtime.web.origins import is_loopback
from runtime.web.tokens import Tokens, load_tokens

TOKENS = Tokens((b"one", b"t\xc3\xb6"))


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer one"},
        {"Authorization": "bearer one"},
        {"Authorization": "Bearer tö"},
        {"X-Auth-Email": "a@b.c", "X-Auth-Key": "one"},
        {"X-Auth-User-Service-Key": "one"},
    ],
)
def test_a_known_token_passes(headers: dict[str, str]) -> None:
    """A known token passes in each of the headers that Cloudflare's clients use."""
    TOKENS.check(headers)


@pytest.mark.parametrize(
    ("headers", "error"),
    [
        ({}, MissingCredentials),
        ({"X-Auth-Email": "a@b.c"}, MissingCredentials),
        ({"Authorization": "Bearer"}, MalformedCredentials),
        ({"Authorization": "Bearer  "}, MalformedCredentials),
        ({"Authorization": "Bearer one two"}, MalformedCredentials),
        ({"Authorization": "Basic one"}, MalformedCredentials),
        ({"Authorization": "Bearer on"}, Unauthorized),
        ({"Authorization": "Bearer \udcff"}, Unauthorized),
        ({"X-Auth-Key": "two"}, Unauthorized),
    ],
)
def test_anything_else_does_not(headers: dict[str, str], error: type[Exception]) -> None:
    """Each way of not having a token has its own error class."""
    with pytest.raises(error) as caught:
        TOKENS.check(headers)
    assert type(caught.value) is error


def test_without_tokens_everybody_is_welcome() -> None:
    """Without tokens no header is read."""
    Tokens().check({"Authorization": "nonsense"})


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:8081", "http://127.0.0.1"])
def test_pages_of_other_sites_are_refused_where_no_token_is_needed(origin: str) -> None:
    """A browser would ask loopback for any page; where a token is needed, no page can know it."""
    headers = {"Origin": origin, "Host": "127.0.0.1:8080"}
    with pytest.raises(ForeignOrigin):
        Tokens().check(headers)
    TOKENS.check(headers | {"Authorization": "Bearer one"})


def test_a_name_that_points_at_loopback_is_no_loopback_address() -> None:
    """A page that has its own name resolved to 127.0.0.1 asks its own host, and is refused all the same."""
    with pytest.raises(ForeignOrigin):
        Tokens().check({"Origin": "http://evil.example:8080", "Host": "evil.example:8080"})


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "localhost:8080", "localhost", "[::1]:8080", "[::1]"])
def test_our_own_pages_may_ask(host: str) -> None:
    """A page whose origin is the server's own address may ask."""
    Tokens().check({"Origin": f"http://{host}", "Host": host})


def test_file(tmp_path: Path) -> None:
    """A token file has one token a line; blank lines and comments do not count."""
    path = tmp_path / "tokens"
    path.write_text("# ours\n\n one \ntwo\n")
    assert load_tokens(ServerSettings(token_file=str(path))).values == (b"one", b"two")


@pytest.mark.parametrize(
    ("content", "text"), [(None, "cannot read"), (b"# nothing\n", "holds no token"), (b"\xff\xfe", "is not text")]
)
def test_unusable_files(tmp_path: Path, content: bytes | None, text: str) -> None:
    """A missing, an empty and an unreadable token file are each an error of their own."""
    path = tmp_path / "tokens"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=text):
        load_tokens(ServerSettings(token_file=str(path)))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org"])  # noqa: S104 - the very case
def test_outside_addresses_need_tokens(host: str) -> None:
    """A server that other machines can reach does not start without tokens."""
    with pytest.raises(ConfigError, match="--token-file"):
        load_tokens(ServerSettings(host=host))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_none(host: str) -> None:
    """A server on loopback needs no tokens."""
    assert is_loopback(host)
    assert load_tokens(ServerSettings(host=host)) == Tokens()


def test_a_byte_order_mark_is_no_part_of_a_token(tmp_path: Path) -> None:
    """A token file saved by a Windows editor begins with a mark that belongs to the encoding."""
    (tmp_path / "tokens").write_bytes(b"\xef\xbb\xbfsecret\r\n")
    assert load_tokens(ServerSettings(token_file=str(tmp_path / "tokens"))).values == (b"secret",)
