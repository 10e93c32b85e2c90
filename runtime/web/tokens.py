"""Bearer tokens: which there are, and whether a request brought one."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from runtime.config import ServerSettings
from runtime.errors import ConfigError, Forbidden, MalformedCredentials, MissingCredentials, Unauthorized
from runtime.web.origins import Origins, cors_headers, is_loopback, parse_origins

_KEY_HEADERS = ("X-Auth-Key", "X-Auth-User-Service-Key")
"""Where Cloudflare's older credentials travel; the same tokens are accepted there."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """The accepted tokens; without any, every client that can reach the server is accepted.

    ``admin_values`` are those that may also change adapters.
    """

    values: tuple[bytes, ...] = ()
    admin_values: tuple[bytes, ...] = ()
    origins: Origins = field(default_factory=Origins)
    """Which pages may ask where no token is needed."""

    def check(self, headers: Mapping[str, str]) -> None:
        """Let a request with one of the tokens pass; without tokens, every request but those of foreign web pages.

        Raises:
            ForeignOrigin: no tokens are required, and a browser asks for a page of another origin or by another name.
            MissingCredentials: tokens are required and none came.
            MalformedCredentials: the Authorization header is not ``Bearer <token>``.
            Unauthorized: the token is not one of ours.
        """
        if not self.values:
            self.origins.check(headers)
            return
        if not _is_among(headers, (*self.values, *self.admin_values)):
            raise Unauthorized("the token is not in the list of this server")

    def check_page(self, headers: Mapping[str, str]) -> None:
        """Let a preflight request pass whose page may ask; it never brings a token.

        Raises:
            ForeignOrigin: as ``check``.
        """
        if not self.values:
            self.origins.check(headers)

    def cors_headers(self, headers: Mapping[str, str]) -> dict[str, str]:
        """The headers that let the page of a request read its answer."""
        return cors_headers(self.origins, headers, has_tokens=bool(self.values))

    def check_admin(self, headers: Mapping[str, str]) -> None:
        """Let a request pass that may change adapters; it has passed ``check``.

        Raises:
            MissingCredentials, MalformedCredentials: as ``check``.
            Forbidden: the token is not one of those for changes, or there are none although tokens are used.
        """
        if not self.values and not self.admin_values:
            return
        if not self.admin_values:
            raise Forbidden("changes to adapters need a token of their own: start the server with --admin-token-file")
        if not _is_among(headers, self.admin_values):
            raise Forbidden("this token may not change adapters; use one of --admin-token-file")


class TokenCheck:
    """The tokens of the settings, which can be read again while the server runs."""

    def __init__(self, settings: ServerSettings) -> None:
        """Read the tokens.

        Raises:
            ConfigError: as `load_tokens`.
        """
        self._settings = settings
        self._tokens = load_tokens(settings)

    def check(self, headers: Mapping[str, str]) -> None:
        """Raise as `Tokens.check`."""
        self._tokens.check(headers)

    def check_page(self, headers: Mapping[str, str]) -> None:
        """Raise as `Tokens.check_page`."""
        self._tokens.check_page(headers)

    def cors_headers(self, headers: Mapping[str, str]) -> dict[str, str]:
        """See `Tokens.cors_headers`."""
        return self._tokens.cors_headers(headers)

    def check_admin(self, headers: Mapping[str, str]) -> None:
        """Raise as `Tokens.check_admin`."""
        self._tokens.check_admin(headers)

    def reload(self) -> int:
        """Read the file again; how many tokens there are now.

        Raises:
            ConfigError: as `load_tokens`; the tokens stay as they were.
        """
        self._tokens = load_tokens(self._settings)
        return len(self._tokens.values)


def load_tokens(settings: ServerSettings) -> Tokens:
    """The tokens of ``--token-file`` and ``--admin-token-file``.

    Raises:
        ConfigError: a file cannot be read or holds none, there is no token file and the address is not loopback, or
            ``--allow-origin`` holds something else than origins.
    """
    if not settings.token_file and not settings.socket and not is_loopback(settings.host):
        raise ConfigError(f"--host {settings.host} can be reached from outside: give --token-file as well")
    return Tokens(
        _read_tokens("--token-file", settings.token_file),
        _read_tokens("--admin-token-file", settings.admin_token_file),
        parse_origins(settings.allow_origin, has_any_name=bool(settings.socket)),
    )


def _read_tokens(flag: str, path: str) -> tuple[bytes, ...]:
    """One token a line; empty lines and those that begin with ``#`` do not count."""
    if not path:
        return ()
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise ConfigError(f"cannot read {flag} {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{flag} {path} is not text") from error
    values = tuple(line.strip().encode() for line in lines if line.strip() and not line.lstrip().startswith("#"))
    if not values:
        raise ConfigError(f"{flag} {path} holds no token; put one on a line")
    return values


def _is_among(headers: Mapping[str, str], values: tuple[bytes, ...]) -> bool:
    """Whether the token that came is one of these.

    Every one is compared, each in constant time and by its digest: how long this takes reveals nothing.
    """
    came = _digest(_credential(headers).encode("utf-8", "surrogateescape"))
    return sum(hmac.compare_digest(came, _digest(value)) for value in values) > 0


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def _credential(headers: Mapping[str, str]) -> str:
    header = headers.get("Authorization")
    if header is not None:
        scheme, _, token = header.partition(" ")
        if scheme.lower() != "bearer" or len(token.split()) != 1:
            raise MalformedCredentials("the Authorization header must read: Bearer <token>, the token without spaces")
        return token.strip()
    for name in _KEY_HEADERS:
        if headers.get(name):
            return headers[name]
    raise MissingCredentials("send an Authorization header: Bearer <token>")
