"""A slower engine: the tiny Gemma answers within a blink, too fast for a hand that stops it or a camera that looks."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

from tests.end_to_end.serving import Server

LOOK_S = 0.0005
MAX_RUN_S = 0.1
"""How long an engine runs that has nothing to do."""


@contextlib.contextmanager
def slowed(server: Server, run_s: float = 0.003, rest_s: float = 0.02) -> Iterator[None]:
    """Stop the engine for ``rest_s`` seconds after every ``run_s`` of processor time; all that it does stays real.

    A busy machine, which gives the engine little time, slows it down no further.
    """
    done = threading.Event()

    def alternate() -> None:
        while not done.is_set():
            _signal(server, signal.SIGSTOP)
            time.sleep(rest_s)
            _signal(server, signal.SIGCONT)
            _let_run(server, run_s)

    thread = threading.Thread(target=alternate)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        _signal(server, signal.SIGCONT)


@contextlib.contextmanager
def at_half_speed(server: Server) -> Iterator[None]:
    """Slow enough for a few hundred tokens to be measured."""
    with slowed(server, run_s=0.01, rest_s=0.01):
        yield


def _let_run(server: Server, run_s: float) -> None:
    end, deadline = _processor_s(server) + run_s, time.monotonic() + MAX_RUN_S
    while _processor_s(server) < end and time.monotonic() < deadline:
        time.sleep(LOOK_S)


def _processor_s(server: Server) -> float:
    """Processor time of the engine process, in seconds. Source: Linux, ``posix-timers.h``, MAKE_PROCESS_CPUCLOCK."""
    total = 0.0
    for pid in server.engine_pids():
        with contextlib.suppress(OSError):
            total += time.clock_gettime((~pid << 3) | 2)
    return total


def _signal(server: Server, number: signal.Signals) -> None:
    for pid in server.engine_pids():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
