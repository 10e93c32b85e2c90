"""The lock of adapters: which content may be served under which name.

The file has a line ``SHA256  NAME`` for each adapter, as ``sha256sum`` writes. The digest is that of the GGUF file that
is served, so a folder in PEFT's form is locked by what its conversion gives. Empty lines and lines that begin with
``#`` do not count.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path

from runtime.errors import ConfigError, InvalidAdapter

_LINE = re.compile(r"([0-9a-f]{64}) [ *](\S.*)")


def read_lock(path: Path) -> dict[str, str]:
    """Name -> digest.

    Raises:
        ConfigError: the file cannot be read, a line is of another form, or a name stands twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"cannot read --require-locked {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--require-locked {path} is not text") from error
    lock: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line.rstrip())
        if not found:
            raise ConfigError(f"--require-locked {path}, line {number}: not of the form 'SHA256  NAME'")
        name = unicodedata.normalize("NFC", found[2].removesuffix(".gguf"))
        if name in lock:
            raise ConfigError(f"--require-locked {path}, line {number}: {name!r} stands twice")
        lock[name] = found[1]
    return lock


def check_locked(lock: Mapping[str, str], name: str, digest: str) -> None:
    """Refuse an adapter whose name and content are not in ``lock``.

    Raises:
        InvalidAdapter: the name is not locked, or locked with another content.
    """
    wanted = lock.get(unicodedata.normalize("NFC", name))
    if wanted is None:
        raise InvalidAdapter(f"adapter {name} is not in the list of --require-locked; add the line: {digest}  {name}")
    if wanted != digest:
        raise InvalidAdapter(f"adapter {name} has the SHA-256 {digest}, and --require-locked wants {wanted}")
