"""The web side's view of the engine: a protocol, and the child process that fulfils it."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from convert.own_module import module_command, module_environment
from runtime import messages
from runtime.config import EngineSettings
from runtime.errors import EngineDied, EngineUnavailable, GemlaneError, ModelLoadError, Overloaded, from_code
from runtime.generation import GenerationRequest
from runtime.messages import Finished, Ready, Started, Stats, Text

log = logging.getLogger("gemlane.client")

GenerationEvent = Started | Text | Finished

ENGINE_COMMAND = module_command("runtime.engine")
_LINE_LIMIT_BYTES = 1 << 20
_EXIT_TIMEOUT_S = 5.0
_READY_TIMEOUT_S = 30.0
"""How long a request waits for an engine that is starting (again) before it is refused."""
_HANG_TIMEOUT_S = 300.0
"""A working engine says something at least once a step; a step of minutes is a hang."""


class Engine(Protocol):
    """What everything above the pipe may ask of an engine, wherever it runs."""

    @property
    def ready(self) -> Ready | None:
        """What is loaded, or None while the engine starts (or starts again)."""

    @property
    def stats(self) -> Stats | None:
        """The engine's last word about its load."""

    @property
    def n_in_flight(self) -> int:
        """Requests submitted and not yet ended."""

    def generate(
        self, request: GenerationRequest
    ) -> AbstractAsyncContextManager[AsyncGenerator[GenerationEvent, None]]:
        """Submit ``request`` and give its events: ``Started``, ``Text`` ..., ``Finished``.

        Leaving the context before ``Finished`` cancels the request. Events wait in memory until they are taken; they
        are bounded by ``max_tokens`` and the context window.

        Raises:
            Overloaded: the queue is full; nothing was submitted.
            EngineUnavailable: the engine is not ready, and was not within half a minute.
            GemlaneError: while iterating, the engine's ``Failed`` as the class its code names; ``EngineDied`` if the
                process ended.
        """

    async def add_adapter(self, digest: str, path: Path) -> None:
        """Make an adapter known, now and after every restart.

        Raises:
            AdapterError: the engine refused it, with the reason.
        """

    async def remove_adapter(self, digest: str) -> None:
        """Forget an adapter; requests that run under it finish under it."""


class _Crash(ModelLoadError):
    """The engine process ended without a word."""


@dataclass(slots=True)
class _Child:
    """One run of the engine process, and everything that waits for it."""

    process: asyncio.subprocess.Process
    ready: Ready | None = None
    failure: ModelLoadError | None = None
    asked_at: float | None = None
    """When the first request was sent since its last word; None if it owes us none."""
    streams: dict[str, asyncio.Queue[GenerationEvent | GemlaneError]] = field(default_factory=dict)
    additions: dict[str, asyncio.Future[None]] = field(default_factory=dict)

    def send(self, command: messages.Command) -> None:
        """Write one command; a pipe whose reader is gone is noticed by the reading side."""
        if self.process.stdin is not None and not self.process.stdin.is_closing():
            self.process.stdin.write(messages.encode(command))

    def put(self, event: GenerationEvent | messages.Failed) -> None:
        """Give one event to its request; a request that was cancelled is no longer here."""
        queue = self.streams.get(event.request_id)
        if queue is None:
            return
        if isinstance(event, Finished | messages.Failed):
            del self.streams[event.request_id]
        queue.put_nowait(from_code(event.code, event.message) if isinstance(event, messages.Failed) else event)

    def settle(self, answer: messages.AdapterAdded | messages.AdapterRefused) -> None:
        """Tell whoever added an adapter what became of it."""
        addition = self.additions.pop(answer.digest, None)
        if addition is None or addition.done():
            if isinstance(answer, messages.AdapterRefused):
                log.warning("adapter %s is refused: %s", answer.digest, answer.message)
        elif isinstance(answer, messages.AdapterRefused):
            addition.set_exception(from_code(answer.code, answer.message))
        else:
            addition.set_result(None)

    def fail(self, error: GemlaneError) -> None:
        """End everything that waits, with ``error``."""
        for queue in self.streams.values():
            queue.put_nowait(error)
        self.streams.clear()
        for addition in self.additions.values():
            if not addition.done():
                addition.set_exception(error)
        self.additions.clear()


class ChildEngine:
    """The engine as a child process: started, watched, started again when it dies.

    Not thread-safe; one event loop owns it.
    """

    def __init__(
        self,
        settings: EngineSettings,
        *,
        max_in_flight: int,
        command: Sequence[str] = ENGINE_COMMAND,
        ready_timeout_s: float = _READY_TIMEOUT_S,
        hang_timeout_s: float = _HANG_TIMEOUT_S,
        on_loading: Callable[[float], None] = lambda _fraction: None,
    ) -> None:
        self._settings = settings
        self._max_in_flight = max_in_flight
        self._command = command
        self._ready_timeout_s = ready_timeout_s
        self._hang_timeout_s = hang_timeout_s
        self._on_loading = on_loading
        self._adapters: dict[str, Path] = {}
        self._child: _Child | None = None
        self._is_ready = asyncio.Event()
        self._n_waiting = 0
        self._stats: Stats | None = None
        self._supervisor: asyncio.Task[None] | None = None

    @property
    def ready(self) -> Ready | None:
        """What is loaded, or None while the engine starts (or starts again)."""
        return self._child.ready if self._child else None

    @property
    def stats(self) -> Stats | None:
        """The engine's last word about its load."""
        return self._stats

    @property
    def n_in_flight(self) -> int:
        """Requests submitted and not yet ended, those that wait for the engine to start included."""
        return self._n_waiting + (len(self._child.streams) if self._child else 0)

    @property
    def process_id(self) -> int | None:
        """The process that runs now."""
        return self._child.process.pid if self._child else None

    async def start(self) -> Ready:
        """Start the engine and wait until the model is loaded.

        Raises:
            ModelLoadError: it cannot be; the message is for the user.
        """
        first: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self._supervisor = asyncio.create_task(self._supervise(first), name="engine supervisor")
        return await asyncio.shield(first)

    async def stop(self) -> None:
        """End the engine; what still runs fails with ``EngineUnavailable``. Safe to call twice."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            with suppress(asyncio.CancelledError):
                await self._supervisor
            self._supervisor = None

    @asynccontextmanager
    async def generate(self, request: GenerationRequest) -> AsyncIterator[AsyncGenerator[GenerationEvent, None]]:
        """See `Engine.generate`."""
        if self.n_in_flight >= self._max_in_flight:
            raise Overloaded(f"{self.n_in_flight} requests are running or waiting already; try again in a moment")
        child = await self._ready_child()
        queue: asyncio.Queue[GenerationEvent | GemlaneError] = asyncio.Queue()
        child.streams[request.request_id] = queue
        child.send(messages.Generate(request))
        child.asked_at = child.asked_at or asyncio.get_running_loop().time()
        events = _take_events(queue)
        try:
            yield events
        finally:
            await events.aclose()
            if child.streams.pop(request.request_id, None) is not None:
                child.send(messages.Cancel(request.request_id))

    async def _ready_child(self) -> _Child:
        """The child, once it is ready."""
        self._n_waiting += 1
        try:
            async with asyncio.timeout(self._ready_timeout_s if self._supervisor else 0):
                while self._child is None or self._child.ready is None:
                    await self._is_ready.wait()
                return self._child
        except TimeoutError:
            raise EngineUnavailable("the model is being loaded; try again in a moment") from None
        finally:
            self._n_waiting -= 1

    async def add_adapter(self, digest: str, path: Path) -> None:
        """See `Engine.add_adapter`."""
        self._adapters[digest] = path
        child = self._child
        if child is None or child.ready is None:
            return
        added = child.additions.setdefault(digest, asyncio.get_running_loop().create_future())
        child.send(messages.AddAdapter(digest, str(path)))
        try:
            await asyncio.shield(added)
        except EngineDied:
            return  # it is told again when the next engine is ready
        except GemlaneError:
            self._adapters.pop(digest, None)
            raise

    async def remove_adapter(self, digest: str) -> None:
        """See `Engine.remove_adapter`."""
        self._adapters.pop(digest, None)
        if self._child is not None and self._child.ready is not None:
            self._child.send(messages.RemoveAdapter(digest))

    async def _supervise(self, first: asyncio.Future[Ready]) -> None:
        """Run one child after the other until cancelled; wait longer after each that dies before it is ready."""
        delay_s = 0.0
        while True:
            reason, was_ready = await self._run_next(first)
            if isinstance(reason, _Crash) and not was_ready and self._settings.adapter_batching == "auto":
                # llama.cpp may have aborted while the lanes were proven: without lanes it does what it always does.
                log.warning("%s before it was ready; starting it with grouped batches", reason)
                self._settings = dataclasses.replace(self._settings, adapter_batching="grouped")
                continue
            if not first.done():
                first.set_exception(reason)
                return
            log.error("%s; starting it again", reason)
            delay_s = 0.0 if was_ready else min(30.0, max(1.0, delay_s * 2))
            await asyncio.sleep(delay_s)

    async def _run_next(self, first: asyncio.Future[Ready]) -> tuple[ModelLoadError, bool]:
        """Run one child to its end: what to tell of that, and whether it had been ready."""
        try:
            child = await self._spawn()
        except OSError as error:
            return ModelLoadError(f"the engine process cannot be started: {error.strerror}"), False
        end: GemlaneError = EngineUnavailable("the server is shutting down")
        try:
            await self._run(child, first)
            end = EngineDied("the engine process ended while this request was running; it is being restarted")
        finally:
            self._child = None
            self._is_ready.clear()
            child.fail(end)
            await _end(child.process)
        return child.failure or _Crash(_exit_words(child.process.returncode)), child.ready is not None

    async def _spawn(self) -> _Child:
        process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_LINE_LIMIT_BYTES,
            env=module_environment(),
            process_group=0,  # Ctrl-C at the terminal is ours to handle
        )
        self._child = child = _Child(process)
        child.send(messages.Load(self._settings))
        return child

    async def _run(self, child: _Child, first: asyncio.Future[Ready]) -> None:
        """Hand out the child's events until it closes its end, or hangs."""
        assert child.process.stdout is not None
        while True:
            try:
                async with asyncio.timeout(self._hang_timeout_s):
                    line = await child.process.stdout.readline()
            except TimeoutError:
                asked_at = child.asked_at
                if asked_at is None or asyncio.get_running_loop().time() - asked_at < self._hang_timeout_s:
                    continue
                log.error("the engine has said nothing for %.0f s with requests running", self._hang_timeout_s)
                return
            except ValueError:
                log.error("the engine wrote a line of over %d bytes", _LINE_LIMIT_BYTES)
                return
            if not line.endswith(b"\n"):
                return
            child.asked_at = None
            try:
                event = messages.decode(line)
            except ValueError as error:
                log.error("the engine broke the protocol: %s", error)
                return
            self._hand_out(child, event)
            if isinstance(event, Ready) and not first.done():
                first.set_result(event)

    def _hand_out(self, child: _Child, event: messages.Message) -> None:
        """Give one event to whoever waits for it."""
        match event:
            case Started() | Text() | Finished() | messages.Failed():
                child.put(event)
            case messages.AdapterAdded() | messages.AdapterRefused():
                child.settle(event)
            case Ready():
                child.ready = event
                self._is_ready.set()
                for digest, path in self._adapters.items():
                    child.send(messages.AddAdapter(digest, str(path)))
            case messages.LoadFailed():
                child.failure = ModelLoadError(event.message)
            case messages.Loading():
                self._on_loading(event.fraction)
            case Stats():
                self._stats = event


async def _take_events(
    queue: asyncio.Queue[GenerationEvent | GemlaneError],
) -> AsyncGenerator[GenerationEvent, None]:
    """The events of one request, up to and with its end."""
    while True:
        event = await queue.get()
        if isinstance(event, GemlaneError):
            raise event
        yield event
        if isinstance(event, Finished):
            return


async def _end(process: asyncio.subprocess.Process) -> None:
    """Close the engine's input, which asks it to exit; make it, if it does not, or if there is no time to wait."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(_EXIT_TIMEOUT_S):
                await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def _exit_words(return_code: int | None) -> str:
    """What to tell of a process that ended without a word."""
    if return_code is not None and return_code < 0:
        return f"the engine process was killed by signal {-return_code}"
    return f"the engine process ended with status {return_code}"
