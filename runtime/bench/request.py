"""One request of a load: its stream is read, and the moments of its tokens are noted."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import time
from dataclasses import dataclass, field
from typing import Any, Final

from runtime.bench.endpoints import PATHS
from runtime.bench.schedule import PlannedRequest
from runtime.bench.target import LoadTarget
from runtime.commands.stream import error_words, open_response
from runtime.errors import GemlaneError

_EVENT: Final = b"data: "


@dataclass(frozen=True, slots=True)
class RequestForm:
    """What all requests of a load have in common."""

    endpoint: str
    """A key of ``PATHS``."""
    max_tokens: int
    temperature: float
    ignores_end: bool
    """Whether answers go on to ``max_tokens``; a server that does not know ``ignore_eos`` may refuse it."""

    def body(self, target: LoadTarget, adapter: str, prompt: str) -> dict[str, Any]:
        """The body of one request."""
        asked = {"messages": [{"role": "user", "content": prompt}]} if self.endpoint == "chat" else {"prompt": prompt}
        return {
            **target.naming(adapter),
            **asked,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
            **({"ignore_eos": True} if self.ignores_end else {}),
        }


@dataclass(slots=True)
class MeasuredRequest:
    """What came of one request. Written by its own thread. Moments are seconds from the start of the load."""

    number: int
    adapter: str
    due_s: float
    """When it was to be sent; its times are counted from here, also if it was sent later."""
    first_s: float | None = None
    """When its first text came."""
    last_s: float = 0.0
    """When its last text came."""
    end_s: float | None = None
    """When it ended, answered or not; None while it runs."""
    gaps_s: list[float] = field(default_factory=list)
    """Times between its pieces of text."""
    n_prompt: int = 0
    """Tokens of its prompt, as the server counts them; 0 where it does not say."""
    n_tokens: int = 0
    """Tokens of its answer, as the server counts them, or its pieces."""
    error: str = ""
    is_cancelled: bool = False
    _connection: http.client.HTTPConnection | None = None

    @property
    def is_answered(self) -> bool:
        """Whether the whole answer came."""
        return self.end_s is not None and not self.error and not self.is_cancelled

    def cancel(self) -> None:
        """Close the connection, which ends the answer on the server too."""
        self.is_cancelled = True
        if self._connection is not None and self._connection.sock is not None:
            with contextlib.suppress(OSError):
                self._connection.sock.shutdown(socket.SHUT_RDWR)

    def read(self, target: LoadTarget, form: RequestForm, planned: PlannedRequest, began: float) -> None:
        """Send it and read its stream to the end. ``began``: the load's start by ``time.perf_counter``."""
        self._connection = target.address.connect()
        body = form.body(target, planned.adapter, planned.prompt)
        try:
            with open_response(self._connection, target.address, "POST", PATHS[form.endpoint], body) as response:
                for line in response:
                    if line.startswith(_EVENT) and not line.startswith(b"data: [DONE]"):
                        self._take(json.loads(line[len(_EVENT) :]), time.perf_counter() - began)
            if self.first_s is None:
                self.error = "the answer has no text"
        except GemlaneError as error:
            self.error = str(error)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.error = f"the answer broke off: {error}"
        finally:
            self.end_s = time.perf_counter() - began

    def _take(self, event: dict[str, Any], moment_s: float) -> None:
        if "error" in event:
            raise GemlaneError(error_words(event))
        for choice in event.get("choices", ()):
            if choice.get("text") or choice.get("delta", {}).get("content"):
                self.n_tokens += 1
                if self.first_s is None:
                    self.first_s = moment_s
                else:
                    self.gaps_s.append(moment_s - self.last_s)
                self.last_s = moment_s
        if usage := event.get("usage"):
            self.n_prompt = int(usage.get("prompt_tokens") or 0)
            self.n_tokens = int(usage.get("completion_tokens") or self.n_tokens)
