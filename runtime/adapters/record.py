"""What is written beside an uploaded adapter: its identity, and which of its files have come."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from convert.files import whole_file

RECORD_NAME: Final = "record.json"
_MAX_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class UploadRecord:
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


def read_record(folder: Path) -> UploadRecord:
    """The record in ``folder``.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not one of ours.
    """
    with (folder / RECORD_NAME).open("rb") as file:
        fields = json.loads(file.read(_MAX_BYTES))
    try:
        return UploadRecord(
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
        raise ValueError(f"{folder / RECORD_NAME} is not a record: {error!r}") from error


def write_record(folder: Path, record: UploadRecord) -> None:
    """Put ``record`` into ``folder``, whole or not at all.

    Raises:
        OutputProblem: it cannot be written.
    """
    fields = {
        "id": record.id,
        "name": record.name,
        "model": record.model,
        "description": record.description,
        "public": record.is_public,
        "created_at": record.created_at.isoformat(),
        "modified_at": record.modified_at.isoformat(),
        "digest": record.digest,
        "files": dict(record.files),
    }
    with whole_file(folder / RECORD_NAME) as file:
        file.write(json.dumps(fields, indent=1, ensure_ascii=False).encode())


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"not text: {value!r}")
    return value
