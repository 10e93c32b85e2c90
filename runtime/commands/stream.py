"""A streamed answer from a running server, for commands: the OpenAI wire over the standard library's HTTP client."""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import socket
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from runtime.errors import GemlaneError, ServerRefused, ServerUnreachable

BASE_MODEL: Final = "gemma-7b-it-lora"
_TIMEOUT_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server is: ``http://``, ``https://`` or ``unix:PATH``, and the token it wants."""

    url: str
    token: str = ""
    ca_file: str = ""

    def connect(self) -> http.client.HTTPConnection:
        """A new connection, not opened yet.

        Raises:
            ServerUnreachable: the address is not one of the three kinds.
        """
        parts = urlsplit(self.url)
        if parts.scheme == "unix":
            return _UnixConnection(parts.path)
        if parts.scheme == "https":
            context = ssl.create_default_context(cafile=self.ca_file or None)
            return http.client.HTTPSConnection(parts.netloc, timeout=_TIMEOUT_S, context=context)
        if parts.scheme == "http":
            return http.client.HTTPConnection(parts.netloc, timeout=_TIMEOUT_S)
        raise ServerUnreachable(f"--url must begin with http://, https:// or unix:, not {self.url!r}")

    @property
    def headers(self) -> dict[str, str]:
        """What every request carries."""
        headers = {"Content-Type": "application/json"}
        return headers | ({"Authorization": f"Bearer {self.token}"} if self.token else {})


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        """Open the socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


@dataclass(slots=True)
class StreamedAnswer:
    """An answer as far as it has come, and how fast it came."""

    text: str = ""
    n_tokens: int = 0
    first_token_s: float | None = None
    total_s: float = 0.0
    finish_reason: str = ""
    error: str = ""

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second after the first one; 0 while there is no second."""
        if self.first_token_s is None or self.n_tokens < 2 or self.total_s <= self.first_token_s:
            return 0.0
        return (self.n_tokens - 1) / (self.total_s - self.first_token_s)


@dataclass(slots=True)
class ChatRequest:
    """One request, which can be cancelled from another thread."""

    address: Address
    messages: Sequence[Mapping[str, str]]
    lora: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    _connection: http.client.HTTPConnection | None = None

    def stream(self, answer: StreamedAnswer) -> None:
        """Fill ``answer`` piece by piece; an error ends it with ``answer.error``."""
        started = time.monotonic()
        try:
            for piece in self._pieces(answer):
                answer.total_s = time.monotonic() - started
                if piece:
                    if answer.first_token_s is None:
                        answer.first_token_s = answer.total_s
                    answer.text += piece
        except GemlaneError as error:
            answer.error = str(error)
        except (OSError, http.client.HTTPException, ValueError) as error:
            answer.error = answer.error or f"the answer broke off: {error}"

    def cancel(self) -> None:
        """Close the connection, which ends the answer on the server too."""
        if self._connection is not None and self._connection.sock is not None:
            self._connection.sock.shutdown(socket.SHUT_RDWR)

    def _pieces(self, answer: StreamedAnswer) -> Iterator[str]:
        body = {
            "model": BASE_MODEL,
            "messages": list(self.messages),
            "stream": True,
            "stream_options": {"include_usage": True},
            **({"lora": self.lora} if self.lora else {}),
            **self.options,
        }
        connection = self._connection = self.address.connect()
        with open_response(connection, self.address, "POST", "/v1/chat/completions", body) as response:
            for line in response:
                if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    raise ServerRefused(error_words(event))
                if event.get("usage"):
                    answer.n_tokens = event["usage"]["completion_tokens"]
                for choice in event.get("choices", ()):
                    answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
                    piece = choice.get("delta", {}).get("content") or ""
                    answer.n_tokens += bool(piece)
                    yield piece


@contextlib.contextmanager
def open_response(
    connection: http.client.HTTPConnection, address: Address, method: str, path: str, body: Any = None
) -> Iterator[http.client.HTTPResponse]:
    """Send one request; the connection is closed with the context.

    Raises:
        ServerUnreachable: nothing listens there.
        ServerRefused: the answer is an error; its words.
    """
    data = None if body is None else json.dumps(body).encode()
    with contextlib.closing(connection):
        try:
            connection.request(method, path, data, address.headers)
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ServerUnreachable(
                f"no server answers at {address.url}: {reason}; start one with gemlane serve, or name it with --url"
            ) from error
        with response:
            if response.status >= http.client.BAD_REQUEST:
                raise ServerRefused(_refusal(response))
            yield response


def get_json(address: Address, path: str) -> Any:
    """The JSON that ``path`` answers.

    Raises:
        ServerUnreachable: nothing listens there.
        ServerRefused: the answer is an error.
    """
    with open_response(address.connect(), address, "GET", path) as response:
        return json.loads(response.read())


def _refusal(response: http.client.HTTPResponse) -> str:
    try:
        words = error_words(json.loads(response.read()))
    except ValueError:
        words = response.reason
    hint = "; give the token with --token-file or GEMLANE_TOKEN" if response.status == http.client.UNAUTHORIZED else ""
    return f"{response.status}: {words}{hint}"


def error_words(body: Any) -> str:
    """The message of an error in OpenAI's shape."""
    error = body.get("error") if isinstance(body, dict) else None
    return str(error.get("message", error)) if isinstance(error, dict) else str(body)


def address_of(arguments: argparse.Namespace) -> Address:
    """Where the server is, as the arguments and the environment say.

    Raises:
        GemlaneError: the token file cannot be read.
    """
    token = read_token(arguments.token_file) if arguments.token_file else os.environ.get("GEMLANE_TOKEN", "")
    return Address(arguments.url.rstrip("/"), token, arguments.ca_file)


def read_token(path: str) -> str:
    """The first token of a token file.

    Raises:
        ServerRefused: the file cannot be read.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ServerRefused(f"cannot read --token-file {path}: {error.strerror}") from error
    return next((line.strip() for line in lines if line.strip() and not line.startswith("#")), "")
