"""A load while it runs: threads that send requests, of clients in a closed loop or of due requests in an open one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from runtime.bench.request import MeasuredRequest, RequestForm
from runtime.bench.schedule import LoadPlan, PlannedRequest, planned
from runtime.bench.target import LoadTarget
from runtime.errors import GemlaneError

MAX_IN_FLIGHT: Final = 1000
"""Threads of an open loop; requests that are due beyond them wait, and their wait counts."""
_CANCEL_WAIT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """How far a load is."""

    n_sent: int
    n_ended: int
    n_failed: int
    n_tokens: int
    elapsed_s: float


class LoadRun:
    """A running load. One thread makes it, asks for its progress and stops it; threads of its own send."""

    def __init__(self, target: LoadTarget, form: RequestForm, plan: LoadPlan) -> None:
        self._target, self._form, self._plan = target, form, plan
        self._pending = planned(plan)
        self._lock = threading.Lock()
        self._is_stopped = threading.Event()
        self._places = threading.Semaphore(MAX_IN_FLIGHT)
        self._records: list[MeasuredRequest] = []
        self._began = time.perf_counter()
        senders = [self._send_when_due] if plan.rate is not None else [self._send_in_turn] * plan.n_clients
        self._threads = [threading.Thread(target=sender, daemon=True) for sender in senders]

    def start(self) -> None:
        """Begin to send."""
        self._began = time.perf_counter()
        for thread in self._all_threads():
            thread.start()

    def wait(self, timeout_s: float) -> bool:
        """Wait until everything has ended, ``timeout_s`` at most; whether it has."""
        deadline = time.monotonic() + timeout_s
        for thread in filter(threading.Thread.is_alive, self._all_threads()):
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._all_threads())

    def stop(self) -> None:
        """Send nothing more, and cancel what runs."""
        self._is_stopped.set()
        for record in self.records():
            if record.end_s is None:
                record.cancel()
        self.wait(_CANCEL_WAIT_S)

    def records(self) -> list[MeasuredRequest]:
        """All requests sent until now."""
        with self._lock:
            return list(self._records)

    def progress(self) -> LoadProgress:
        """How far it is."""
        records = self.records()
        return LoadProgress(
            len(records),
            sum(record.end_s is not None for record in records),
            sum(bool(record.error) and not record.is_cancelled for record in records),
            sum(record.n_tokens for record in records),
            time.perf_counter() - self._began,
        )

    def _all_threads(self) -> list[threading.Thread]:
        with self._lock:
            return list(self._threads)

    def _take(self) -> PlannedRequest | None:
        """The next request, or None if no more are to be sent."""
        if self._is_stopped.is_set():
            return None
        with self._lock:
            request = next(self._pending, None)
        limit_s = self._plan.duration_s
        if request is None or limit_s is None:
            return request
        moment_s = request.due_s if self._plan.rate is not None else time.perf_counter() - self._began
        return request if moment_s < limit_s else None

    def _requests(self) -> Iterator[PlannedRequest]:
        while (request := self._take()) is not None:
            yield request

    def _send(self, request: PlannedRequest, due_s: float) -> None:
        record = MeasuredRequest(request.number, request.adapter, due_s)
        with self._lock:
            self._records.append(record)
        if self._is_stopped.is_set():
            record.is_cancelled = True
            return
        record.read(self._target, self._form, request, self._began)

    def _send_in_turn(self) -> None:
        """One client of a closed loop."""
        for request in self._requests():
            self._send(request, time.perf_counter() - self._began)

    def _send_when_due(self) -> None:
        """The dispatcher of an open loop."""
        for request in self._requests():
            if self._is_stopped.wait(max(0.0, request.due_s - (time.perf_counter() - self._began))):
                return
            self._places.acquire()
            thread = threading.Thread(target=self._send_and_leave, args=(request,), daemon=True)
            with self._lock:
                self._threads.append(thread)
            thread.start()

    def _send_and_leave(self, request: PlannedRequest) -> None:
        try:
            self._send(request, request.due_s)
        finally:
            self._places.release()


def measure_tokens(target: LoadTarget, form: RequestForm, adapter: str, prompt: str) -> int:
    """Send one request before the load; the tokens of its prompt as the server counts them, 0 if it does not say.

    Raises:
        GemlaneError: the server does not answer it; its words.
    """
    record = MeasuredRequest(0, adapter, 0.0)
    record.read(target, form, PlannedRequest(0, 0.0, adapter, prompt), time.perf_counter())
    if record.error:
        raise GemlaneError(f"a first request failed: {record.error}")
    return record.n_prompt
