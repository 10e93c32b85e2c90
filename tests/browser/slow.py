"""A slower engine: the tiny Gemma answers within a blink, too fast for a hand that stops it or a camera that looks."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

from tests.end_to_end.serving import Server

RUN_S = 0.002
REST_S = 0.02


@contextlib.contextmanager
def slowed(server: Server) -> Iterator[None]:
    """Let the engine process run for 2 ms of every 22 ms while the context lasts; everything it does stays real."""
    done = threading.Event()

    def alternate() -> None:
        while not done.is_set():
            _signal(server, signal.SIGSTOP)
            time.sleep(REST_S)
            _signal(server, signal.SIGCONT)
            time.sleep(RUN_S)

    thread = threading.Thread(target=alternate)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        _signal(server, signal.SIGCONT)


def _signal(server: Server, number: signal.Signals) -> None:
    for pid in server.engine_pids():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
