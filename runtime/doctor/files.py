"""The files and the address that the settings name."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from convert.gguf.header import GgufHeader
from convert.rules.model import ModelSummary
from runtime.config import ServerSettings, Settings
from runtime.doctor.finding import Finding, fault, note, ok
from runtime.engine.start.model_file import check_model_file
from runtime.errors import ConfigError, ModelLoadError
from runtime.web.tokens import load_tokens


def check_model(settings: Settings) -> tuple[tuple[GgufHeader, ModelSummary] | None, Finding]:
    """The header of the base model and what the rules say of it, if it is sound."""
    if not settings.engine.model:
        return None, note("model", "none is named", "Name one to have it checked: gemlane doctor --model FILE")
    try:
        header, summary = check_model_file(Path(settings.engine.model))
    except ModelLoadError as error:
        return None, fault("model", str(error))
    words = f"{settings.engine.model}: {'+'.join(header.tensor_types())}"
    if summary.warnings:
        return (header, summary), note("model", f"{words}: {'; '.join(summary.warnings)}", "")
    return (header, summary), ok("model", f"{words}, sound")


def check_tokens(settings: ServerSettings) -> Finding:
    """Whether the token file is there, and readable by its owner alone."""
    try:
        tokens = load_tokens(settings)
    except ConfigError as error:
        return fault("tokens", str(error))
    if not settings.token_file:
        return ok("tokens", f"none needed: only this machine reaches {settings.socket or settings.host}")
    mode = Path(settings.token_file).stat().st_mode
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        return note("tokens", f"{settings.token_file} can be read by others", f"chmod 600 {settings.token_file}")
    return ok("tokens", f"{len(tokens.values)} in {settings.token_file}")


def check_address(settings: ServerSettings) -> Finding:
    """Whether the address can be listened on now."""
    try:
        places = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = places[0]
        with socket.socket(family, kind, protocol) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(address)
    except OSError as error:
        advice = "Stop what listens there, or choose another with --port" if error.errno == errno.EADDRINUSE else ""
        reason = error.strerror or str(error)
        return fault("address", f"{settings.host} port {settings.port}: {reason}", advice)
    return ok("address", f"{settings.host} port {settings.port} is free")


def check_prefix_dir(folder: str) -> Iterator[Finding]:
    """Whether the folder of saved prefixes is the server's alone."""
    if not folder:
        return
    path = Path(folder)
    if not path.is_dir():
        parent = next(one for one in path.absolute().parents if one.exists())
        if os.access(parent, os.W_OK):
            yield ok("prefixes", f"{folder} will be made")
        else:
            yield fault("prefixes", f"{folder} cannot be made: {parent} is not writable", "Name another --prefix-dir")
    elif not os.access(path, os.W_OK):
        yield fault("prefixes", f"{folder} is not writable", "Name another with --prefix-dir")
    elif path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        yield fault("prefixes", f"others may write to {folder}, which the server trusts", f"chmod 700 {folder}")
    else:
        yield ok("prefixes", folder)
