"""What is written beside an uploaded adapter: who it is, and which of its files have come."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

MANIFEST_NAME: Final = "finetune.json"
_MAX_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Manifest:
    """One uploaded adapter. Times are UTC; ``digest`` is that of the converted GGUF, None until then."""

    id: str
    name: str
    model: str
    description: str
    is_public: bool
    created_at: datetime
    modified_at: datetime
    digest: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    """The SHA-256 of each uploaded file, so that a repeated upload is known as such."""


def read_manifest(folder: Path) -> Manifest:
    """The manifest in ``folder``.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not one of ours.
    """
    with (folder / MANIFEST_NAME).open("rb") as file:
        fields = json.loads(file.read(_MAX_BYTES))
    try:
        return Manifest(
            id=_text(fields["id"]),
            name=_text(fields["name"]),
            model=_text(fields["model"]),
            description=_text(fields["description"]),
            is_public=bool(fields["public"]),
            created_at=datetime.fromisoformat(fields["created_at"]),
            modified_at=datetime.fromisoformat(fields["modified_at"]),
            digest=None if fields["digest"] is None else _text(fields["digest"]),
            files={_text(name): _text(digest) for name, digest in fields["files"].items()},
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / MANIFEST_NAME} is not a manifest: {error!r}") from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Put ``manifest`` into ``folder``, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    fields = {
        "id": manifest.id,
        "name": manifest.name,
        "model": manifest.model,
        "description": manifest.description,
        "public": manifest.is_public,
        "created_at": manifest.created_at.isoformat(),
        "modified_at": manifest.modified_at.isoformat(),
        "digest": manifest.digest,
        "files": dict(manifest.files),
    }
    with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".part", encoding="utf-8", delete=False) as file:
        try:
            json.dump(fields, file, indent=1, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).replace(folder / MANIFEST_NAME)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def now() -> datetime:
    """This moment, in UTC."""
    return datetime.now(UTC)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"not text: {value!r}")
    return value
