"""Requests whose grammar is being compiled, beside the engine's own thread: a large schema stops no stream."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from runtime.errors import GemlaneError, OutOfMemory
from runtime.generation import GenerationRequest, Grammar
from runtime.llama.grammar import GrammarMatcher

_MIN_LIMIT_S, _LIMIT_S_PER_TOKEN = 2.0, 8e-5
"""The vocabulary's first reading takes 2 s for 256,000 tokens on an idle machine; ten times that is a hang."""


def compiling_limit_s(n_vocab: int) -> float:
    """How long compiling may keep the engine's thread from its work, for a vocabulary of that many tokens."""
    return _MIN_LIMIT_S + _LIMIT_S_PER_TOKEN * n_vocab


class Compiler(Protocol):
    """What compiles a grammar."""

    def compile(self, grammar: Grammar) -> GrammarMatcher:
        """The grammar, ready for one answer.

        Raises:
            UnsupportedGrammar: it cannot be enforced.
        """


class Compiling:
    """Owns one thread. Everything but the compiling happens in the engine's thread."""

    def __init__(self, compiler: Compiler, on_done: Callable[[], None]) -> None:
        """Start nothing yet.

        Args:
            compiler: compiles the grammars.
            on_done: called, in the other thread, whenever ``take_done`` has something to give.
        """
        self._compiler = compiler
        self._on_done = on_done
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grammar")
        self._requests: dict[str, tuple[GenerationRequest, Future[GrammarMatcher]]] = {}

    @property
    def request_ids(self) -> tuple[str, ...]:
        """The requests that wait here."""
        return tuple(self._requests)

    def __len__(self) -> int:
        """How many requests wait here."""
        return len(self._requests)

    def __contains__(self, request_id: str) -> bool:
        """Whether that request waits here."""
        return request_id in self._requests

    def begin(self, request: GenerationRequest, grammar: Grammar) -> None:
        """Compile the grammar of a request."""
        future = self._thread.submit(self._compiler.compile, grammar)
        self._requests[request.request_id] = (request, future)
        future.add_done_callback(lambda _: self._on_done())

    def cancel(self, request_id: str) -> None:
        """Forget a request that waits here."""
        _, future = self._requests.pop(request_id)
        future.cancel()

    def take_done(self) -> list[tuple[GenerationRequest, GrammarMatcher | GemlaneError]]:
        """The requests whose grammars are compiled or refused, oldest first."""
        done = [request_id for request_id, (_, future) in self._requests.items() if future.done()]
        return [(request, _outcome(future)) for request, future in map(self._requests.pop, done)]

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(cancel_futures=True)


def _outcome(future: Future[GrammarMatcher]) -> GrammarMatcher | GemlaneError:
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, MemoryError):
        return OutOfMemory("there is not enough memory to compile this grammar; try a smaller one, or later")
    return error if isinstance(error, GemlaneError) else GemlaneError(f"a grammar could not be compiled: {error}")
