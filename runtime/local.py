"""Gemma inside your own program: calls instead of a port.

::

    from runtime.config import EngineSettings
    from runtime.generation import Sampling
    from runtime.local import LocalGemma

    with LocalGemma(EngineSettings(model="gemma-7b-it.gguf")) as gemma:
        gemma.add_adapter("pirate", "adapters/pirate.gguf")
        print(gemma.answer("What is the capital of France?", lora="pirate"))
        for text in gemma.stream("Tell me a story.", lora="pirate:0.5", sampling=Sampling(temperature=0)):
            print(text, end="", flush=True)

Calls from several threads share batches, each under its own adapter. llama.cpp runs in a process of its own, which is
started again if it dies. This module, ``runtime.config`` and ``runtime.generation`` are what a program should import.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import queue
import threading
from collections.abc import Callable, Coroutine, Generator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from runtime.adapters.blend import blend_of, parse_lora
from runtime.adapters.check import make_check
from runtime.config import EngineSettings
from runtime.engines.supervisor import ChildEngine
from runtime.errors import InvalidAdapter, UnknownAdapter
from runtime.generation import GenerationRequest, Prompt, Sampling
from runtime.messages import ModelInfo, Text
from runtime.prompt.gemma import Message, SystemRole, render

Result = TypeVar("Result")
_DEFAULT_SAMPLING: Final = Sampling()
_MAX_IN_FLIGHT: Final = 1024


class LocalGemma:
    """One base model and any number of adapters. Safe to use from several threads; use it as a context manager."""

    def __init__(self, settings: EngineSettings, on_loading: Callable[[float], None] = lambda _fraction: None) -> None:
        """Load the model, which takes as long as reading the file.

        Args:
            settings: at least ``EngineSettings(model=FILE)``; the fields are the flags of ``gemlane serve``.
            on_loading: called in another thread with how much is loaded, 0 to 1.

        Raises:
            ModelLoadError: the model cannot be loaded; the message says why.
        """
        self._check = make_check(Path(settings.model))
        self._digests: dict[str, str] = {}
        self._ids = itertools.count()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gemlane", daemon=True)
        self._thread.start()
        try:
            self._engine = self._call(_make_engine(settings, on_loading))
            self.model: ModelInfo = self._call(self._engine.start()).model
        except BaseException:
            self._end_loop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the engine; answers that still run fail with ``EngineUnavailable``. Safe to call twice."""
        if self._thread.is_alive():
            self._call(self._engine.stop())
            self._end_loop()

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names that ``lora`` may use, sorted."""
        return tuple(sorted(self._digests))

    def add_adapter(self, name: str, path: str | Path) -> None:
        """Make the GGUF adapter at ``path`` known as ``name``, in place of an earlier adapter of that name.

        The file must stay where it is, unchanged. ``gemlane convert adapter`` makes one from PEFT or MLX.

        Raises:
            AdapterError: it cannot be used with this base model; the message says why.
        """
        path = Path(path)
        try:
            self._check(path)
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise InvalidAdapter(f"cannot read {path}: {error.strerror}") from error
        self._call(_wait(self._engine, digest, path))
        self._digests[name] = digest

    def answer(
        self,
        prompt: str | Sequence[Message],
        *,
        lora: str = "",
        max_tokens: int = 256,
        sampling: Sampling = _DEFAULT_SAMPLING,
        stop: Sequence[str] = (),
    ) -> str:
        """A whole answer. Arguments and errors are those of ``stream``."""
        return "".join(self.stream(prompt, lora=lora, max_tokens=max_tokens, sampling=sampling, stop=stop))

    def stream(
        self,
        prompt: str | Sequence[Message],
        *,
        lora: str = "",
        max_tokens: int = 256,
        sampling: Sampling = _DEFAULT_SAMPLING,
        stop: Sequence[str] = (),
    ) -> Generator[str, None, None]:
        """An answer piece by piece. Leaving the iteration cancels the rest.

        Args:
            prompt: a user's message, or a conversation that ends with one.
            lora: an adapter, with a scale or in a blend: ``pirate``, ``pirate:0.5+shout``; empty is the base model.
            max_tokens: longest answer, in tokens.
            sampling: how tokens are chosen; ``Sampling(temperature=0)`` always takes the most likely one.
            stop: texts that end the answer.

        Raises:
            UnknownAdapter: no adapter has that name.
            InvalidRequest: the arguments break a rule; ``ContextExceeded`` if the prompt is too long.
            EngineError: the engine died with the answer half taken, or is not back yet.
        """
        request = GenerationRequest(
            f"local-{next(self._ids)}",
            _prompt_of(prompt),
            max_tokens,
            sampling,
            blend_of(parse_lora(lora), self._digest_of),
            tuple(stop),
        )
        pieces: queue.SimpleQueue[str | BaseException | None] = queue.SimpleQueue()
        running = asyncio.run_coroutine_threadsafe(_pump(self._engine, request, pieces), self._loop)
        try:
            while (piece := pieces.get()) is not None:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            running.cancel()

    def _digest_of(self, name: str) -> str:
        try:
            return self._digests[name]
        except KeyError:
            raise UnknownAdapter(f"adapters here are {', '.join(self.adapters) or 'none'}", name) from None

    def _call(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _make_engine(settings: EngineSettings, on_loading: Callable[[float], None]) -> ChildEngine:
    """An engine of this loop, not started yet."""
    return ChildEngine(settings, max_in_flight=_MAX_IN_FLIGHT, on_loading=on_loading)


async def _wait(engine: ChildEngine, digest: str, path: Path) -> None:
    await engine.add_adapter(digest, path)


async def _pump(
    engine: ChildEngine, request: GenerationRequest, pieces: queue.SimpleQueue[str | BaseException | None]
) -> None:
    """Put the texts of an answer into the queue, then None, or the error that ended it."""
    try:
        async with engine.generate(request) as events:
            async for event in events:
                if isinstance(event, Text):
                    pieces.put(event.text)
    except BaseException as error:
        pieces.put(error)
        if isinstance(error, asyncio.CancelledError):
            raise
    else:
        pieces.put(None)


def _prompt_of(prompt: str | Sequence[Message]) -> Prompt:
    messages = [Message("user", prompt)] if isinstance(prompt, str) else list(prompt)
    return render(messages, SystemRole.FOLD)
