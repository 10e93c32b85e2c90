"""Which web pages may ask, and by which names: cross-origin rules (CORS) and the guard against DNS rebinding. Pure.

A server with tokens lets every page ask: the token is the protection, and there are no cookies. A server without
tokens trusts every client that reaches loopback, and a page in a browser of this machine does. So it answers its own
pages and those of ``--allow-origin`` alone, and only under a name of loopback: a page whose owner points its name at
127.0.0.1 (DNS rebinding) has no foreign origin, but it cannot hide its name.

Source: WHATWG Fetch, "CORS protocol"; W3C Private Network Access, for ``Access-Control-Allow-Private-Network``.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from runtime.errors import ConfigError, ForeignOrigin

_LOCAL_NAMES: Final = ("localhost", "host.docker.internal", "workers-binding.ai")
"""Names that are this machine's: Docker's for the host of a container, and workerd's for what is behind ``env.AI``."""
_METHODS: Final = "GET, POST, PUT, PATCH, DELETE, OPTIONS"
_PREFLIGHT_S: Final = "600"
_HEADER_NAMES: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+(\s*,\s*[A-Za-z0-9!#$%&'*+.^_`|~-]+)*")
_ORIGIN: Final = re.compile(r"null|[a-z][a-z0-9+.-]*://[^\s/,]*")
_MAX_ECHO: Final = 200


@dataclass(frozen=True, slots=True)
class Origins:
    """The origins of pages that may ask a server without tokens; ``app://`` stands for all origins of that scheme."""

    allowed: tuple[str, ...] = ()
    has_any_name: bool = False
    """Whether the Host does not matter, since no browser reaches the server: it listens on a Unix socket."""

    def check(self, headers: Mapping[str, str]) -> None:
        """Let a request pass that comes from no web page, from one of our own, or from an allowed one.

        Raises:
            ForeignOrigin: the Host is not a name of loopback, or a page of another origin asks.
        """
        host = headers.get("Host", "")
        if host and not self.has_any_name and not is_own_name(host):
            raise ForeignOrigin(
                f"a server without tokens answers to names of loopback, not to {host[:_MAX_ECHO]!r}; "
                "ask for localhost, or start it with --token-file"
            )
        origin = headers.get("Origin", "").lower()
        if origin and not self.allows(origin) and not _is_same(origin, host.lower()):
            raise ForeignOrigin(
                f"pages of {origin[:_MAX_ECHO]} may not ask here; start the server with --allow-origin "
                f"{origin[:_MAX_ECHO]}, or with --token-file, then every page with a token may"
            )

    def allows(self, origin: str) -> bool:
        """Whether pages of ``origin``, in lower case, were allowed by name."""
        return any(origin.startswith(entry) if entry.endswith("://") else origin == entry for entry in self.allowed)


def parse_origins(text: str, *, has_any_name: bool = False) -> Origins:
    """The value of ``--allow-origin``: origins, separated by commas.

    Raises:
        ConfigError: something else is among them.
    """
    entries = tuple(entry.strip().lower().rstrip("/") for entry in text.split(",") if entry.strip())
    entries = tuple(entry + "//" if entry.endswith(":") else entry for entry in entries)
    for entry in entries:
        if not _ORIGIN.fullmatch(entry):
            raise ConfigError(
                f"--allow-origin: {entry!r} is not an origin; "
                "write https://page.example, app:// for all of a scheme, or null"
            )
    return Origins(entries, has_any_name)


def cors_headers(origins: Origins, headers: Mapping[str, str], *, has_tokens: bool) -> dict[str, str]:
    """What lets a page read the answer; nothing for pages that may not ask."""
    exposed = {"Access-Control-Expose-Headers": "*"}
    if has_tokens:
        return {"Access-Control-Allow-Origin": "*", **exposed}
    origin = headers.get("Origin", "")
    if not origins.allows(origin.lower()):
        return {}
    return {"Access-Control-Allow-Origin": origin, "Vary": "Origin", **exposed}


def is_preflight(method: str, headers: Mapping[str, str]) -> bool:
    """Whether a browser asks if a page may ask."""
    return method == "OPTIONS" and "Origin" in headers and "Access-Control-Request-Method" in headers


def preflight_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The answer to a preflight request whose page may ask; ``cors_headers`` come besides."""
    wanted = headers.get("Access-Control-Request-Headers", "")
    answer = {"Access-Control-Allow-Methods": _METHODS, "Access-Control-Max-Age": _PREFLIGHT_S}
    if _HEADER_NAMES.fullmatch(wanted):
        answer["Access-Control-Allow-Headers"] = wanted
    if headers.get("Access-Control-Request-Private-Network") == "true":
        answer["Access-Control-Allow-Private-Network"] = "true"
    return answer


def is_own_name(host: str) -> bool:
    """Whether a Host header names this machine's loopback; a port may follow."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    name = name.lower().rstrip(".")
    return name in _LOCAL_NAMES or name.endswith(".localhost") or is_loopback(name.strip("[]"))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``; a name other than ``localhost`` is taken as reachable."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_same(origin: str, host: str) -> bool:
    return origin.partition("://")[2] == host
