"""What an upload's name and files must be, checked before anything is kept."""

from __future__ import annotations

import contextlib
import json
import uuid
from pathlib import Path
from typing import Any, Final

from runtime.errors import InvalidAdapter

CONFIG_NAME: Final = "adapter_config.json"
WEIGHTS_NAME: Final = "adapter_model.safetensors"
MAX_CONFIG_BYTES: Final = 1 << 20
_MAX_NAME_LENGTH: Final = 200
_OTHER_FAMILIES: Final = ("llama", "mistral", "mixtral", "qwen", "falcon")
_RESERVED_PREFIX: Final = "cf-public-"  # Cloudflare's own adapters (docs "fine-tunes/public-loras")


def check_file_name(file_name: str) -> None:
    """Check that a file name is one of the two of a PEFT adapter.

    Raises:
        InvalidAdapter: it is another name.
    """
    if file_name not in (CONFIG_NAME, WEIGHTS_NAME):
        raise InvalidAdapter(f"file_name must be {CONFIG_NAME} or {WEIGHTS_NAME}, not {file_name[:200]!r}")


def check_config(path: Path) -> None:
    """Refuse at once what no conversion could use: another model's configuration, or none.

    Cloudflare wants ``model_type``; PEFT does not write it. Where it is missing the base's name may still tell, and
    if that says nothing either, the conversion compares every shape.

    Raises:
        InvalidAdapter: not a JSON object, too large, or not for Gemma.
    """
    with path.open("rb") as file:
        raw = file.read(MAX_CONFIG_BYTES + 1)
    if len(raw) > MAX_CONFIG_BYTES:
        raise InvalidAdapter(f"{CONFIG_NAME} may have {MAX_CONFIG_BYTES} bytes at most")
    try:
        config: Any = json.loads(raw)
    except (ValueError, RecursionError):
        raise InvalidAdapter(f"{CONFIG_NAME} is not JSON") from None
    if not isinstance(config, dict):
        raise InvalidAdapter(f"{CONFIG_NAME} must be a JSON object")
    kind = config.get("model_type")
    if kind not in (None, "gemma"):
        raise InvalidAdapter(f"{CONFIG_NAME} has model_type {str(kind)[:100]!r}; this server's model is gemma")
    base = str(config.get("base_model_name_or_path")).lower()
    if kind is None and "gemma" not in base and any(family in base for family in _OTHER_FAMILIES):
        raise InvalidAdapter(f"{CONFIG_NAME} is for {base[:100]!r}; this server's model is gemma")


def check_name(name: str) -> None:
    """Let a name pass that an upload may have.

    Raises:
        InvalidAdapter: it is empty, too long, unprintable, reserved, or looks like an id.
    """
    if not name.strip() or len(name) > _MAX_NAME_LENGTH or not name.isprintable():
        raise InvalidAdapter(f"an adapter's name must have 1 to {_MAX_NAME_LENGTH} printable characters")
    if name.startswith(_RESERVED_PREFIX):
        raise InvalidAdapter(f"names that begin with {_RESERVED_PREFIX} are reserved")
    with contextlib.suppress(ValueError):
        uuid.UUID(name)
        raise InvalidAdapter("an adapter's name must not look like an id")
