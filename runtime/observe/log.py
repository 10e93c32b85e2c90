"""The log: one format for both processes, and one line for every request, which never holds a prompt or an answer."""

from __future__ import annotations

import json
import logging
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Final

from runtime.errors import ConfigError
from runtime.observe import names
from runtime.observe.events import AnswerEnded, Event, RequestEnded
from runtime.observe.names import NameOf

FORMATS: Final = ("text", "json")
_FIELDS: Final = "gemlane_fields"
"""Attribute of a log record: what the JSON format writes beside the message."""

log = logging.getLogger("gemlane.request")


def set_up(level: str, style: str, file: str = "") -> None:
    """Log to standard error, or to ``file``, which is opened again when it has been rotated away.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        handler = WatchedFileHandler(Path(file), encoding="utf-8") if file else logging.StreamHandler(sys.stderr)
    except OSError as error:
        raise ConfigError(f"cannot write --log-file {file}: {error.strerror}") from error
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


class TextFormatter(logging.Formatter):
    """``2026-11-25 09:30:00 INFO message``, in local time."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        """Render one record's line; a message can neither begin another line nor control a terminal."""
        record.message = _on_one_line(record.message)
        return super().formatMessage(record)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, and the fields of a request."""

    def format(self, record: logging.LogRecord) -> str:
        """Render one record."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= getattr(record, _FIELDS, {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class RequestLog:
    """Writes one line for each HTTP request when it has ended. Belongs to the event loop."""

    def __init__(self, name_of: NameOf) -> None:
        self._name_of = name_of
        self._answers: dict[str, list[AnswerEnded]] = defaultdict(list)

    def observe(self, event: Event) -> None:
        """Keep what the answers of a request were until the request has ended."""
        match event:
            case AnswerEnded():
                self._answers[_request_of(event.request_id)].append(event)
            case RequestEnded():
                fields = request_fields(event, self._answers.pop(event.request_id, []), self._name_of)
                log.info("%s", _render_text(fields), extra={_FIELDS: fields})


def _on_one_line(text: str) -> str:
    """``text`` with line breaks and other control characters written as escapes."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _request_of(answer_id: str) -> str:
    """The id of the HTTP request that an answer belongs to: several answers have it with a suffix."""
    return answer_id.partition("/")[0]


def request_fields(request: RequestEnded, answers: Sequence[AnswerEnded], name_of: NameOf) -> dict[str, object]:
    """What the log says of a request, in order."""
    fields: dict[str, object] = {"method": request.method, "path": request.path, "status": request.status}
    if request.error:
        fields["error"] = request.error
    if answers:
        first_s = [answer.first_token_s for answer in answers if answer.first_token_s is not None]
        fields |= {
            "adapter": names.describe(answers[0].blend, name_of),
            "outcome": answers[0].outcome,
            "prompt_tokens": answers[0].usage.n_prompt_tokens,
            "cached_tokens": answers[0].usage.n_cached_tokens,
            "tokens": sum(answer.usage.n_completion_tokens for answer in answers),
        }
        if first_s:
            fields["first_token_s"] = round(min(first_s), 3)
    return fields | {"total_s": round(request.elapsed_s, 3), "request_id": request.request_id}


def _render_text(fields: Mapping[str, object]) -> str:
    head = f"{fields['method']} {fields['path']} {fields['status']}"
    rest = " ".join(f"{key}={value}" for key, value in fields.items() if key not in ("method", "path", "status"))
    return f"{head} {rest}"
