"""One run of the engine process: its pipe, its hangs, its end. It knows nothing of the requests' callers."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress

from convert.module import module_command, module_environment
from runtime import messages, pipe
from runtime.engines.child_log import ChildLog
from runtime.errors import GemlaneError, ModelLoadError, from_code
from runtime.messages import Ready

log = logging.getLogger(__name__)

ENGINE_COMMAND = module_command("runtime.engine")
MIN_QUIET_S = 6.0
"""The shortest time without an event that counts as a hang: longer than a busy machine withholds the processor."""
_MAX_OWN_PAUSE_S = 2.0
"""The event loop looks at the pipe every second; a longer gap means that the loop itself stood still."""
_LINE_LIMIT_BYTES = 1 << 20
_EXIT_TIMEOUT_S = 5.0
_LOG_TIMEOUT_S = 1.0
_MAX_WORDS = 300
_SIGNALS: dict[int, str] = {
    signal.SIGKILL: "killed from outside (signal 9); out of memory, unless a user did it",
    signal.SIGABRT: "aborted by llama.cpp (signal 6)",
    signal.SIGSEGV: "ended by a segmentation fault (signal 11)",
    signal.SIGBUS: "ended by a bus error (signal 7): its model file became shorter, or memory is short",
    signal.SIGILL: "ended by an illegal instruction (signal 4): llama.cpp was built for another processor",
}


class EngineCrash(ModelLoadError):
    """The engine process ended without a reason."""


class EngineChild:
    """A running engine process. Not thread-safe; one event loop owns it."""

    def __init__(self, process: asyncio.subprocess.Process, load_timeout_s: float, min_quiet_s: float) -> None:
        self._process = process
        self._log = ChildLog()
        assert process.stderr is not None
        self._relay = asyncio.create_task(self._log.relay(process.stderr), name="engine log")
        self._min_quiet_s = min_quiet_s
        self._failure: ModelLoadError | None = None
        self._limit_s = load_timeout_s
        """How long the engine may be silent: while it loads, and then as its last announcement says."""
        self._heard_at = asyncio.get_running_loop().time()
        """When the last line came, or the engine's rest ended."""
        self._additions: dict[str, asyncio.Future[None]] = {}
        self._removals: dict[str, asyncio.Future[None]] = {}
        self.ready: Ready | None = None

    @classmethod
    async def spawn(cls, command: Sequence[str], load: messages.Load, min_quiet_s: float = MIN_QUIET_S) -> EngineChild:
        """Start the process and send it the first command.

        Args:
            command: the program and its arguments.
            load: the first command.
            min_quiet_s: the shortest time without an event of a loaded engine that counts as a hang.

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
            start_new_session=True,  # Ctrl-C at the terminal is ours to handle
        )
        child = cls(process, load.settings.load_timeout_s, min_quiet_s)
        child.send(load)
        return child

    @property
    def process_id(self) -> int:
        """The number of the process."""
        return self._process.pid

    @property
    def end_reason(self) -> ModelLoadError:
        """Why the process ended: what it said, what was seen of it, or its exit status."""
        return self._failure or EngineCrash(_describe_exit(self._process.returncode, self._log.last_words))

    @property
    def has_additions(self) -> bool:
        """Whether an adapter was offered that the engine has not answered."""
        return bool(self._additions)

    def send(self, command: messages.Command) -> None:
        """Write one command. `run` notices a pipe whose reader is gone."""
        if self._process.stdin is not None and not self._process.stdin.is_closing():
            self._process.stdin.write(pipe.encode(command))

    def end_rest(self) -> None:
        """The engine had nothing to do until now; the time without an event counts from here."""
        self._heard_at = asyncio.get_running_loop().time()

    def retire(self) -> None:
        """Ask the engine to exit; `run` returns when it has."""
        if self._process.stdin is not None:
            self._process.stdin.close()

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

    async def run(self, is_busy: Callable[[], bool], notice: Callable[[messages.Message], None]) -> None:
        """Deliver events until the process closes its end of the pipe, breaks the protocol, or hangs.

        Args:
            is_busy: whether the engine owes an event.
            notice: takes every event that is about no adapter.
        """
        assert self._process.stdout is not None
        loop = asyncio.get_running_loop()
        while True:
            waited_from = loop.time()
            try:
                async with asyncio.timeout(max(0.0, min(self._limit_s - (waited_from - self._heard_at), 1.0))):
                    line = await self._process.stdout.readline()
            except TimeoutError:
                if self.ready is not None and not is_busy():
                    self.end_rest()
                elif self._hangs(loop.time(), waited_from):
                    return
                continue
            except ValueError:
                self._break(f"wrote a line of over {_LINE_LIMIT_BYTES} bytes")
                return
            if not line.endswith(b"\n"):
                return
            self._heard_at = loop.time()
            try:
                self._deliver(pipe.decode(line), notice)
            except ValueError as error:
                self._break(f"broke the protocol: {error}")
                return

    async def end(self, error: GemlaneError) -> None:
        """Fail the offers that wait with ``error``, then end the process."""
        for addition in self._additions.values():
            if not addition.done():
                addition.set_exception(error)
        self._additions.clear()
        for digest in list(self._removals):
            self._settle_removal(digest)
        await _end(self._process, is_lost=self._failure is not None)
        with suppress(TimeoutError):  # a process that the engine started may hold the pipe open
            await asyncio.wait_for(self._relay, _LOG_TIMEOUT_S)

    def _hangs(self, now: float, waited_from: float) -> bool:
        """Whether the engine hangs. A pause of our own event loop does not count."""
        if now - waited_from > _MAX_OWN_PAUSE_S:
            self._heard_at += now - waited_from
        silent_s = now - self._heard_at
        if silent_s < self._limit_s:
            return False
        doing = "with requests running" if self.ready else "while it loaded the model"
        self._break(f"hung: it said nothing for {silent_s:.0f} s {doing}")
        return True

    def _break(self, what: str) -> None:
        self._failure = EngineCrash(f"the engine process {what}")

    def _deliver(self, event: messages.Message, notice: Callable[[messages.Message], None]) -> None:
        match event:
            case messages.AdapterAdded() | messages.AdapterRefused():
                self._settle(event)
            case messages.AdapterRemoved(digest):
                self._settle_removal(digest)
            case messages.LoadFailed():
                self._failure = ModelLoadError(event.message)
            case messages.Working():
                self._limit_s = max(event.limit_s, self._min_quiet_s)
                notice(event)
            case Ready():
                self.ready = event
                notice(event)
            case _:
                notice(event)

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


async def _end(process: asyncio.subprocess.Process, *, is_lost: bool) -> None:
    """Close the engine's input, which asks it to exit; kill it if it is lost, late, or we are cancelled."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(0 if is_lost else _EXIT_TIMEOUT_S):
                await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def _describe_exit(return_code: int | None, last_words: str) -> str:
    """The end of a process that sent no reason."""
    said = f" ({last_words[:_MAX_WORDS]})" if last_words else ""
    if return_code is not None and return_code < 0:
        how = _SIGNALS.get(-return_code, f"ended by signal {-return_code}")
        return f"the engine process was {how}{said}"
    return f"the engine process ended with status {return_code}{said}"
