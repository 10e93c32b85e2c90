"""Bearer tokens: which there are, and whether a request brought one."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from runtime.config import ServerSettings
from runtime.errors import ConfigError, ForeignOrigin, MalformedCredentials, MissingCredentials, Unauthorized

_KEY_HEADERS = ("X-Auth-Key", "X-Auth-User-Service-Key")
"""Where Cloudflare's older credentials travel; the same tokens are accepted there."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """The accepted tokens; none means that whoever can reach the server is welcome."""

    values: tuple[bytes, ...] = ()

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
        came = _digest(_credential(headers).encode("utf-8", "surrogateescape"))
        # Every token is compared, each in constant time and by its digest: how long this takes tells nothing.
        if not sum(hmac.compare_digest(came, _digest(value)) for value in self.values):
            raise Unauthorized("the token is not in the list of this server")


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

    def reload(self) -> int:
        """Read the file again; how many tokens there are now.

        Raises:
            ConfigError: as `load_tokens`; the tokens stay as they were.
        """
        self._tokens = load_tokens(self._settings)
        return len(self._tokens.values)


def load_tokens(settings: ServerSettings) -> Tokens:
    """The tokens of ``--token-file``, one a line; empty lines and those that begin with ``#`` do not count.

    Raises:
        ConfigError: the file cannot be read or holds none, or there is no file and the address is not loopback.
    """
    if not settings.token_file:
        if not settings.socket and not is_loopback(settings.host):
            raise ConfigError(f"--host {settings.host} can be reached from outside: give --token-file as well")
        return Tokens()
    try:
        lines = Path(settings.token_file).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise ConfigError(f"cannot read --token-file {settings.token_file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--token-file {settings.token_file} is not text") from error
    values = tuple(line.strip().encode() for line in lines if line.strip() and not line.lstrip().startswith("#"))
    if not values:
        raise ConfigError(f"--token-file {settings.token_file} holds no token; put one on a line")
    return Tokens(values)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``; a name other than ``localhost`` is taken as reachable."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


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
