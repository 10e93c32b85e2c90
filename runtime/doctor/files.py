"""The files and the address that the settings name."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from convert.gguf.header import GgufHeader
from convert.rules.model import ModelSummary
from runtime.adapters.check import make_check
from runtime.adapters.lock import check_locked, read_lock
from runtime.config import ServerSettings, Settings
from runtime.doctor.finding import Finding, fault, note, ok
from runtime.engine.start.model_file import check_model_file
from runtime.errors import ConfigError, GemlaneError, ModelLoadError
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


def check_adapters(settings: Settings) -> Iterator[Finding]:
    """Every adapter of the folder that cannot be served, and how many can."""
    folder = Path(settings.server.adapters)
    if not settings.server.adapters:
        yield note("adapters", "no folder is named", "Name one with --adapters DIR")
        return
    if not folder.is_dir():
        yield fault("adapters", f"{folder}: no such folder", "Make it, or name another with --adapters")
        return
    check = make_check(Path(settings.engine.model))
    try:
        lock = read_lock(Path(settings.server.require_locked)) if settings.server.require_locked else None
    except ConfigError as error:
        yield fault("adapters", str(error))
        return
    n_sound = 0
    for path in sorted(folder.glob("*.gguf")):
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                raise ConfigError("not a regular file")
            check(path)
            if lock is not None:
                check_locked(lock, path.stem, digest_of(path))
            n_sound += 1
        except (GemlaneError, OSError) as error:
            yield fault("adapters", f"{path.name} is refused: {error}")
    yield ok("adapters", f"{n_sound} sound in {folder}")
    if not os.access(folder, os.W_OK):
        yield note("adapters", f"{folder} is read-only", "Uploads need a writable folder")


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


def digest_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
