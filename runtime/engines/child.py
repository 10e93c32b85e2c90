"""One run of the engine process: its pipe, and everything that waits for its events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress

from convert.module import module_command, module_environment
from runtime import messages
from runtime.config import EngineSettings
from runtime.engines.child_log import ChildLog
from runtime.engines.protocol import GenerationEvent
from runtime.errors import GemlaneError, ModelLoadError, from_code
from runtime.generation import GenerationRequest
from runtime.messages import Finished, Ready, Started, Text

log = logging.getLogger(__name__)

ENGINE_COMMAND = module_command("runtime.engine")
_LINE_LIMIT_BYTES = 1 << 20
_EXIT_TIMEOUT_S = 5.0
_LOG_TIMEOUT_S = 1.0
_MAX_WORDS = 300


class EngineCrash(ModelLoadError):
    """The engine process ended without a reason."""


class EngineChild:
    """A running engine process. Not thread-safe; one event loop owns it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._log = ChildLog()
        assert process.stderr is not None
        self._relay = asyncio.create_task(self._log.relay(process.stderr), name="engine log")
        self._failure: ModelLoadError | None = None
        self._asked_at: float | None = None
        """When the first request was sent since the last event; None if the engine owes no event."""
        self._streams: dict[str, asyncio.Queue[GenerationEvent | GemlaneError]] = {}
        self._additions: dict[str, asyncio.Future[None]] = {}
        self._removals: dict[str, asyncio.Future[None]] = {}
        self.ready: Ready | None = None

    @classmethod
    async def spawn(cls, command: Sequence[str], settings: EngineSettings) -> EngineChild:
        """Start the process and send it the settings.

        Raises:
            OSError: the process cannot be started.
        """
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_LINE_LIMIT_BYTES,
            env=module_environment(),
            process_group=0,  # Ctrl-C at the terminal is ours to handle
        )
        child = cls(process)
        child.send(messages.Load(settings))
        return child

    @property
    def process_id(self) -> int:
        """The number of the process."""
        return self._process.pid

    @property
    def n_requests(self) -> int:
        """Requests submitted and not yet ended."""
        return len(self._streams)

    @property
    def end_reason(self) -> ModelLoadError:
        """Why the process ended: the reason it sent, else its exit status."""
        return self._failure or EngineCrash(_describe_exit(self._process.returncode, self._log.last_words))

    def send(self, command: messages.Command) -> None:
        """Write one command. `run` notices a pipe whose reader is gone."""
        if self._process.stdin is not None and not self._process.stdin.is_closing():
            self._process.stdin.write(messages.encode(command))

    def submit(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
        """Send a request; its events, up to and with its end."""
        queue: asyncio.Queue[GenerationEvent | GemlaneError] = asyncio.Queue()
        self._streams[request.request_id] = queue
        self.send(messages.Generate(request))
        self._asked_at = self._asked_at or asyncio.get_running_loop().time()
        return _take_events(queue)

    def cancel(self, request_id: str) -> None:
        """Cancel a request, if it has not ended."""
        if self._streams.pop(request_id, None) is not None:
            self.send(messages.Cancel(request_id))

    def add_adapter(self, digest: str, path: str) -> asyncio.Future[None]:
        """Offer an adapter; the future raises what the engine refuses it with."""
        added = self._additions.setdefault(digest, asyncio.get_running_loop().create_future())
        self.send(messages.AddAdapter(digest, path))
        self._settle_removal(digest)
        return added

    def remove_adapter(self, digest: str) -> asyncio.Future[None]:
        """Remove an adapter; the future ends once the engine has no use for it, or it is offered again."""
        removed = self._removals.setdefault(digest, asyncio.get_running_loop().create_future())
        self.send(messages.RemoveAdapter(digest))
        return removed

    async def run(self, hang_timeout_s: float, notice: Callable[[messages.Message], None]) -> None:
        """Deliver events until the process closes its end of the pipe, breaks the protocol, or hangs.

        Args:
            hang_timeout_s: an engine with requests that says nothing for this long has hung.
            notice: takes the events that belong to no request: ``Loading``, ``Ready`` and ``Stats``.
        """
        assert self._process.stdout is not None
        while True:
            try:
                async with asyncio.timeout(hang_timeout_s):
                    line = await self._process.stdout.readline()
            except TimeoutError:
                if self._asked_at is None or asyncio.get_running_loop().time() - self._asked_at < hang_timeout_s:
                    continue
                log.error("the engine has said nothing for %.0f s with requests running", hang_timeout_s)
                return
            except ValueError:
                log.error("the engine wrote a line of over %d bytes", _LINE_LIMIT_BYTES)
                return
            if not line.endswith(b"\n"):
                return
            self._asked_at = None
            try:
                event = messages.decode(line)
            except ValueError as error:
                log.error("the engine broke the protocol: %s", error)
                return
            self._deliver(event, notice)

    async def end(self, error: GemlaneError) -> None:
        """Fail everything that waits with ``error``, then end the process."""
        for queue in self._streams.values():
            queue.put_nowait(error)
        self._streams.clear()
        for addition in self._additions.values():
            if not addition.done():
                addition.set_exception(error)
        self._additions.clear()
        for digest in list(self._removals):
            self._settle_removal(digest)
        await _end(self._process)
        with suppress(TimeoutError):  # a process that the engine started may hold the pipe open
            await asyncio.wait_for(self._relay, _LOG_TIMEOUT_S)

    def _deliver(self, event: messages.Message, notice: Callable[[messages.Message], None]) -> None:
        match event:
            case Started() | Text() | Finished() | messages.Failed():
                self._put(event)
            case messages.AdapterAdded() | messages.AdapterRefused():
                self._settle(event)
            case messages.AdapterRemoved(digest):
                self._settle_removal(digest)
            case messages.LoadFailed():
                self._failure = ModelLoadError(event.message)
            case Ready():
                self.ready = event
                notice(event)
            case _:
                notice(event)

    def _put(self, event: GenerationEvent | messages.Failed) -> None:
        """Give one event to its request. A cancelled request has no queue any more."""
        queue = self._streams.get(event.request_id)
        if queue is None:
            return
        if isinstance(event, Finished | messages.Failed):
            del self._streams[event.request_id]
        if isinstance(event, messages.Failed):
            queue.put_nowait(from_code(event.code, event.message, event.adapter))
        else:
            queue.put_nowait(event)

    def _settle(self, answer: messages.AdapterAdded | messages.AdapterRefused) -> None:
        """Resolve the future of an offered adapter."""
        addition = self._additions.pop(answer.digest, None)
        if addition is None or addition.done():
            if isinstance(answer, messages.AdapterRefused):
                log.warning("adapter %s is refused: %s", answer.digest, answer.message)
        elif isinstance(answer, messages.AdapterRefused):
            addition.set_exception(from_code(answer.code, answer.message))
        else:
            addition.set_result(None)

    def _settle_removal(self, digest: str) -> None:
        """Resolve the future of a removed adapter."""
        removal = self._removals.pop(digest, None)
        if removal is not None and not removal.done():
            removal.set_result(None)


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
    """Close the engine's input, which asks it to exit; kill it if it does not exit in time, or on cancellation."""
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


def _describe_exit(return_code: int | None, last_words: str) -> str:
    """The end of a process that sent no reason."""
    said = f" ({last_words[:_MAX_WORDS]})" if last_words else ""
    if return_code is not None and return_code < 0:
        return f"the engine process was killed by signal {-return_code}{said}"
    return f"the engine process ended with status {return_code}{said}"
