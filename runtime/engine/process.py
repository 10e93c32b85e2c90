"""The engine process: its command queue, its event pipe, and how it ends."""

from __future__ import annotations

import contextlib
import logging
import queue
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from runtime.engine.start.startup import Hooks, start
from runtime.errors import ModelLoadError
from runtime.llama.library import Library
from runtime.messages import (
    AddAdapter,
    BatchingChanged,
    Cancel,
    Event,
    Generate,
    Load,
    LoadFailed,
    Loading,
    Message,
    PinAdapter,
    RemoveAdapter,
)
from runtime.pipe import decode, encode

_LOG = logging.getLogger("gemlane.engine")
_STATS_INTERVAL_S = 1.0
# The most that macOS allows a process (OPEN_MAX in sys/syslimits.h).
_MAX_OPEN_FILES = 10_240
# Progress is sent in steps of a hundredth; llama.cpp reports it thousands of times.
_PROGRESS_STEP = 0.01


class _Stop:
    """An entry of the command queue: the engine has to end."""


class _Wake:
    """An entry of the command queue: a step may find something to do again."""


CommandQueue = queue.SimpleQueue[Message | _Stop | _Wake]


def read_commands(source: BinaryIO, commands: CommandQueue, on_end: Callable[[], None]) -> None:
    """Put every command into the queue and call ``on_end`` at the end of the input; runs in a thread of its own."""
    for line in source:
        try:
            commands.put(decode(line))
        except ValueError as error:
            _LOG.error("ignoring a line on standard input: %s", error)
    on_end()


class Process:
    """The command queue, the event pipe, and the engine between them."""

    def __init__(self, commands: CommandQueue, events: BinaryIO) -> None:
        self._commands = commands
        self._events = events
        self._sent_fraction = -1.0
        self._is_stopping = False

    def stop(self, *_signal: object) -> None:
        """End after the step in progress. Called by the reader and by signals; ``SimpleQueue.put`` allows both."""
        self._is_stopping = True
        self._commands.put(_Stop())

    def send(self, *events: Event) -> None:
        """Write events to the pipe and flush it."""
        self._events.write(b"".join(map(encode, events)))
        self._events.flush()

    def run(self) -> int:
        """Load the model, serve until the end of the input, and return the exit code."""
        first = self._commands.get()
        if isinstance(first, _Stop):
            return 0
        if not isinstance(first, Load):
            _LOG.error("the first command must be Load, not %s", type(first).__name__)
            return 2
        return self._load_and_serve(first)

    def _load_and_serve(self, load: Load) -> int:
        try:
            self._engine, ready = start(
                Library(),
                load.settings,
                Hooks(
                    on_progress=self._send_progress,
                    on_prepared=lambda: self._commands.put(_Wake()),
                    on_batching=lambda mode, reason: self.send(BatchingChanged(mode, reason)),
                ),
                state_dir=Path(load.state_dir) if load.state_dir else None,
            )
        except ModelLoadError as error:
            if self._is_stopping:
                return 0
            self.send(LoadFailed(error.code, str(error)))
            return 1
        self._engine.on_work = self.send
        self.send(ready)
        self._serve()
        self._engine.close()
        return 0

    def _send_progress(self, fraction: float) -> bool:
        if fraction - self._sent_fraction >= _PROGRESS_STEP or fraction == 1:
            self._sent_fraction = fraction
            self.send(Loading(fraction))
        return not self._is_stopping

    def _serve(self) -> None:
        sent_at = 0.0
        while self._take_commands():
            events = self._engine.step()
            if self._engine.is_idle or time.monotonic() - sent_at >= _STATS_INTERVAL_S:
                sent_at = time.monotonic()
                events.append(self._engine.stats)
            if events:
                self.send(*events)
            if self._engine.is_idle:
                self._engine.rest()

    def _take_commands(self) -> bool:
        """Run the commands that have come; wait for one only if there is nothing to do. Returns False at the end."""
        must_wait = self._engine.is_idle or self._engine.is_blocked
        while True:
            try:
                # A blocked engine waits for its adapters' thread, and says once a second that it lives.
                timeout_s = _STATS_INTERVAL_S if self._engine.is_blocked else None
                command = self._commands.get(block=must_wait, timeout=timeout_s)
            except queue.Empty:
                return True
            if isinstance(command, _Stop):
                return False
            if not isinstance(command, _Wake):
                self.send(*self._run_command(command))
            must_wait = False

    def _run_command(self, command: Message) -> list[Event]:
        match command:
            case Generate(request):
                return self._engine.submit(request)
            case Cancel(request_id):
                self._engine.cancel(request_id)
            case AddAdapter(digest, path):
                return [self._engine.add_adapter(digest, Path(path))]
            case RemoveAdapter(digest):
                return self._engine.remove_adapter(digest)
            case PinAdapter(digest, is_pinned):
                self._engine.pin_adapter(digest, is_pinned=is_pinned)
            case _:
                _LOG.error("ignoring an unexpected %s", type(command).__name__)
        return []


def raise_file_limit() -> None:
    """Allow as many open files as the system lets us: every known adapter has one.

    Shells start programs with a soft limit of 1,024 on most Linux systems and of 256 on macOS.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # macOS refuses more than its kern.maxfilesperproc
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def main(events: BinaryIO) -> int:
    """Serve the parent process until it closes the pipe, and return the exit code.

    Args:
        events: the pipe for events; descriptor 1 leads to standard error.
    """
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    _LOG.setLevel(logging.INFO)
    raise_file_limit()
    commands: CommandQueue = queue.SimpleQueue()
    process = Process(commands, events)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, process.stop)
    threading.Thread(target=read_commands, args=(sys.stdin.buffer, commands, process.stop), daemon=True).start()
    try:
        return process.run()
    except BrokenPipeError:
        return 0
    except MemoryError:  # in the middle of a step: the parent starts another engine and runs the requests again there
        _LOG.error("out of memory: the system refused an allocation, so this engine process ends")
        return 1
