"""The engine process's standard error, as log records of this process: one format, one place, one level."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Final

_RECORD: Final = re.compile(r"(DEBUG|INFO|WARNING|ERROR|CRITICAL) ([\w.]+): (.*)")
"""What `runtime.engine.process` makes of a record."""
_NATIVE: Final = logging.getLogger("gemlane.engine.native")


class ChildLog:
    """Logs what the engine process writes."""

    def __init__(self) -> None:
        self.last_words = ""
        """The last line that was no log record: what native code said before it ended the process."""

    async def relay(self, stderr: asyncio.StreamReader) -> None:
        """Log each line until the process closes its end."""
        while True:
            try:
                line = await stderr.readline()
            except ValueError:  # a line over the reader's limit; the reader has dropped it
                continue
            if not line:
                return
            self._log(line.decode(errors="replace").rstrip())

    def _log(self, line: str) -> None:
        record = _RECORD.fullmatch(line)
        if record:
            level, name, message = record.groups()
            logging.getLogger(name).log(logging.getLevelNamesMapping()[level], "%s", message)
        elif line:
            self.last_words = line
            _NATIVE.warning("%s", line)
