"""Bearer tokens: which there are, and whether a request brought one."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from runtime.config import ServerSettings
from runtime.errors import ConfigError, Forbidden, ForeignOrigin, MalformedCredentials, MissingCredentials, Unauthorized

_KEY_HEADERS = ("X-Auth-Key", "X-Auth-User-Service-Key")
"""Where Cloudflare's older credentials travel; the same tokens are accepted there."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """The accepted tokens; without any, every client that can reach the server is accepted.

    ``admin_values`` are those that may also change adapters.
    """

    values: tuple[bytes, ...] = ()
    admin_values: tuple[bytes, ...] = ()

    def check(self, headers: Mapping[str, str]) -> None:
        """Let a request with one of the tokens pass; where there are none, any but one of a foreign web page.

        A page can make its reader's browser ask an address that only the reader reaches. It cannot know a token, and
        cannot hide its origin.

        Raises:
            ForeignOrigin: no tokens are required, and a browser asks for a page of another origin.
            MissingCredentials: tokens are required and none came.
            MalformedCredentials: the Authorization header is not ``Bearer <token>``.
            Unauthorized: the token is not one of ours.
        """
        if not self.values:
            _check_origin(headers)
            return
        if not _is_among(headers, (*self.values, *self.admin_values)):
            raise Unauthorized("the token is not in the list of this server")

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
        ConfigError: a file cannot be read or holds none, or there is no token file and the address is not loopback.
    """
    if not settings.token_file and not settings.socket and not is_loopback(settings.host):
        raise ConfigError(f"--host {settings.host} can be reached from outside: give --token-file as well")
    return Tokens(
        _read_tokens("--token-file", settings.token_file), _read_tokens("--admin-token-file", settings.admin_token_file)
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


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``; a name other than ``localhost`` is taken as reachable."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_among(headers: Mapping[str, str], values: tuple[bytes, ...]) -> bool:
    """Whether the token that came is one of these.

    Every one is compared, each in constant time and by its digest: how long this takes tells nothing.
    """
    came = _digest(_credential(headers).encode("utf-8", "surrogateescape"))
    return sum(hmac.compare_digest(came, _digest(value)) for value in values) > 0


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def _check_origin(headers: Mapping[str, str]) -> None:
    origin = headers.get("Origin")
    if origin is None:
        return
    place = origin.partition("://")[2].lower()
    # A name that its owner points at 127.0.0.1 (DNS rebinding) is its own host, but no loopback address.
    host = place.rpartition(":")[0] if place.rpartition(":")[2].isdecimal() else place
    if place != headers.get("Host", "").lower() or not is_loopback(host.strip("[]")):
        raise ForeignOrigin("pages of other sites may not ask here; with --token-file, whoever has a token may")


def _credential(headers: Mapping[str, str]) -> str:
    header = headers.get("Authorization")
    if header is not None:
        scheme, _, token = header.partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise MalformedCredentials("the Authorization header must read: Bearer <token>")
        return token.strip()
    for name in _KEY_HEADERS:
        if headers.get(name):
            return headers[name]
    raise MissingCredentials("send an Authorization header: Bearer <token>")
