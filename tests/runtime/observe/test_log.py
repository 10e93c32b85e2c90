"""Log lines: one for a request, in two formats, without what users wrote."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.errors import ConfigError
from runtime.generation import BASE, Blend, BlendMember, Usage
from runtime.observe.events import AnswerEnded, RequestEnded
from runtime.observe.log import RequestLog, request_fields, set_up

PIRATE = Blend((BlendMember("a" * 64, 0.5),))
ENDED = RequestEnded("r1", "POST", "/v1/chat/completions", "/v1/chat/completions", 200, "", 1.23456)
ANSWER = AnswerEnded("r1", PIRATE, "stop", Usage(14, 12, 10), 0.1234, 1.2)


def name_of(digest: str) -> str | None:
    """The adapter with digest ``aaa...`` is called pirate."""
    return "pirate" if digest == "a" * 64 else None


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """Undo what a test does to the root logger."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)


def written(path: Path, style: str) -> str:
    """What one request leaves in a log file."""
    set_up("info", style, str(path))
    log = RequestLog(name_of)
    log.observe(ANSWER)
    log.observe(ENDED)
    return path.read_text(encoding="utf-8")


def test_a_request_is_one_line_of_text(tmp_path: Path) -> None:
    """The text format has the date, the level, and the request's fields in order."""
    date, time, rest = written(tmp_path / "log", "text").split(" ", 2)
    assert (len(date), len(time)) == (10, 8)
    assert rest == (
        "INFO POST /v1/chat/completions 200 adapter=pirate:0.5 outcome=stop prompt_tokens=14 cached_tokens=10 "
        "tokens=12 first_token_s=0.123 total_s=1.235 request_id=r1\n"
    )


def test_a_request_is_one_json_object(tmp_path: Path) -> None:
    """The JSON format has each field under its own key."""
    line = json.loads(written(tmp_path / "log", "json"))
    assert line.pop("time").endswith("+00:00")
    assert line.pop("message").startswith("POST /v1/chat/completions 200 ")
    assert line == {
        "level": "info",
        "logger": "gemlane.request",
        "method": "POST",
        "path": "/v1/chat/completions",
        "status": 200,
        "adapter": "pirate:0.5",
        "outcome": "stop",
        "prompt_tokens": 14,
        "cached_tokens": 10,
        "tokens": 12,
        "first_token_s": 0.123,
        "total_s": 1.235,
        "request_id": "r1",
    }


def test_a_request_without_an_answer_has_its_error() -> None:
    """A refused request shows the error's code and no adapter."""
    refused = RequestEnded("r2", "GET", "/x%0Ay", "", 404, "unknown_route", 0.0)
    assert request_fields(refused, [], name_of) == {
        "method": "GET",
        "path": "/x%0Ay",
        "status": 404,
        "error": "unknown_route",
        "total_s": 0.0,
        "request_id": "r2",
    }


def test_answers_of_one_request_add_up() -> None:
    """Several answers to one request are one line: their tokens add up, and the earliest first token counts."""
    answers = [
        AnswerEnded("r1/0", BASE, "stop", Usage(5, 3), 0.4, 1.0),
        AnswerEnded("r1/1", BASE, "stop", Usage(5, 4), 0.2, 1.0),
    ]
    fields = request_fields(ENDED, answers, name_of)
    assert (fields["adapter"], fields["tokens"], fields["first_token_s"]) == ("base", 7, 0.2)


def test_an_exception_is_part_of_the_json_line(tmp_path: Path) -> None:
    """A trace does not break the JSON format: it is a field of the one line."""
    path = tmp_path / "log"
    set_up("info", "json", str(path))
    logging.getLogger("test").error("it broke", exc_info=ValueError("lost"))
    (line,) = path.read_text().splitlines()
    assert json.loads(line)["exception"].endswith("ValueError: lost")


@pytest.mark.parametrize(
    ("forged", "shown"),
    [
        ("a\n2026-01-01 00:00:00 ERROR b", r"a\n2026-01-01 00:00:00 ERROR b"),
        ("a\r\x1b[2Kb", r"a\r\x1b[2Kb"),
        ("a\u2028\x00\x9bb", r"a\u2028\x00\x9bb"),
        ("\u00e4 \U0001f600", "\u00e4 \U0001f600"),
    ],
)
def test_a_message_stays_on_its_line(tmp_path: Path, forged: str, shown: str) -> None:
    """Control characters in a message are written as escapes, so that no client forges a line or a colour."""
    for style in ("text", "json"):
        set_up("info", style, str(tmp_path / style))
        logging.getLogger("test").error("no adapter %s", forged)
    text = (tmp_path / "text").read_text(encoding="utf-8")
    assert text.endswith(f" ERROR no adapter {shown}\n")
    assert text.removesuffix("\n").isprintable()
    (line,) = (tmp_path / "json").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    assert json.loads(line)["message"] == f"no adapter {forged}"


def test_a_rotated_file_is_opened_again(tmp_path: Path) -> None:
    """After the file was moved away, the next line is in a new file of the same name."""
    path = tmp_path / "log"
    set_up("info", "text", str(path))
    logging.getLogger("test").info("one")
    path.rename(tmp_path / "log.1")
    logging.getLogger("test").info("two")
    assert path.read_text().endswith("INFO two\n")


def test_a_log_file_that_cannot_be_written_is_a_config_error(tmp_path: Path) -> None:
    """The message names the option and the reason."""
    with pytest.raises(ConfigError, match=r"cannot write --log-file .*: No such file or directory"):
        set_up("info", "text", str(tmp_path / "missing" / "log"))
