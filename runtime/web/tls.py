"""TLS from certificate files."""

from __future__ import annotations

import ssl

from runtime.config import ServerSettings
from runtime.errors import ConfigError


def load_tls(settings: ServerSettings) -> ssl.SSLContext | None:
    """The certificate and key of ``--tls-cert`` and ``--tls-key``, or None without them; TLS 1.2 or newer.

    Raises:
        ConfigError: only one of the two is given, or they cannot be used together.
    """
    if not settings.tls_cert and not settings.tls_key:
        return None
    if not settings.tls_cert or not settings.tls_key:
        raise ConfigError("--tls-cert and --tls-key belong together: give both")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    reload_tls(context, settings)
    return context


def reload_tls(context: ssl.SSLContext, settings: ServerSettings) -> None:
    """Read the files again; connections from now on get what they hold.

    Raises:
        ConfigError: the files cannot be used; the context keeps what it had.
    """
    names = f"--tls-cert {settings.tls_cert} and --tls-key {settings.tls_key}"
    try:
        # A password prompt would stop a server without a terminal.
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password=lambda: "")
    except ssl.SSLError as error:
        raise ConfigError(f"{names} cannot be used: {error.reason or error}") from error
    except OSError as error:
        raise ConfigError(f"cannot read {names}: {error.strerror}") from error
