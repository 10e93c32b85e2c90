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


@contextlib.contextmanager
def slowed(server: Server, rest_s: float = 0.02) -> Iterator[None]:
    """Stop the engine process for ``rest_s`` seconds after every 2 ms; everything that it does stays real."""
    done = threading.Event()

    def alternate() -> None:
        while not done.is_set():
            _signal(server, signal.SIGSTOP)
            time.sleep(rest_s)
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
