"""Which adapters keep a lane, by name, over restarts and over new contents of the name."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Final

from convert.files import whole_file
from runtime.adapters.disk import storage_errors
from runtime.errors import AdapterBudget

log = logging.getLogger(__name__)

_MAX_BYTES: Final = 1 << 20


class Pins:
    """Names, written down at each change."""

    def __init__(self, max_pins: int, path: Path | None = None) -> None:
        """Read what an earlier run wrote down.

        Args:
            max_pins: how many there may be.
            path: the JSON file; None keeps nothing over a restart.
        """
        self._max_pins = max_pins
        self._path = path
        self._names: set[str] = set()
        if path is None or not path.exists():
            return
        try:
            with path.open("rb") as file:
                self._names = {str(name) for name in json.loads(file.read(_MAX_BYTES))}
        except (OSError, ValueError, TypeError) as error:
            log.warning("the list of pinned adapters cannot be read: %s", error)

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def set(self, name: str, *, is_pinned: bool) -> None:
        """Pin or unpin a name.

        Raises:
            AdapterBudget: as many names are pinned as there may be.
            StorageError: it cannot be written down; nothing has changed.
        """
        names = self._names | {name} if is_pinned else self._names - {name}
        if len(names) > max(self._max_pins, len(self._names)):
            raise AdapterBudget(
                f"{self._max_pins} adapters at most can be pinned, so that a lane is left to the others (--lanes)"
            )
        if self._path is not None:
            with storage_errors(), whole_file(self._path) as file:
                file.write(json.dumps(sorted(names), ensure_ascii=False).encode())
        self._names = names
