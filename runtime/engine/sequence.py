"""A request inside the engine, and the states it may go through.

::

    WAITING ──> PREFILL ──> DECODE ──> FINISHED
       │           ├──────────┼──────> CANCELLED
       └───────────┴──────────┴──────> FAILED         (WAITING and PREFILL may be cancelled too;
                                                        PREFILL may finish: max_tokens 0)
"""

from __future__ import annotations

from collections.abc import Container
from enum import Enum, auto

from runtime.engine.coverage import Coverage
from runtime.generation import Blend, GenerationRequest, Usage


class State(Enum):
    """The state of a sequence."""

    WAITING = auto()
    """Accepted; holds no cell and no lane."""
    PREFILL = auto()
    """Its prompt is being computed."""
    DECODE = auto()
    """Its answer grows by one token a step."""
    FINISHED = auto()
    CANCELLED = auto()
    FAILED = auto()


MOVES: dict[State, frozenset[State]] = {
    State.WAITING: frozenset({State.PREFILL, State.CANCELLED, State.FAILED}),
    State.PREFILL: frozenset({State.DECODE, State.FINISHED, State.CANCELLED, State.FAILED}),
    State.DECODE: frozenset({State.FINISHED, State.CANCELLED, State.FAILED}),
    State.FINISHED: frozenset(),
    State.CANCELLED: frozenset(),
    State.FAILED: frozenset(),
}


class IllegalMoveError(Exception):
    """A move that the table does not allow: a bug in the engine."""


class Sequence:
    """One request: its tokens, how many of them are in the cache, and its state. Owned by the scheduler."""

    def __init__(
        self, request: GenerationRequest, prompt_tokens: list[int], n_ctx: int, coverage: Coverage | None = None
    ) -> None:
        """Make a waiting sequence.

        Args:
            request: what is asked for.
            prompt_tokens: at least one; owned from now on.
            n_ctx: the context window, in tokens.
            coverage: the tokens that run under the request's blend; all of them if it is None.

        Raises:
            ValueError: the prompt is empty or leaves no room in the context window.
        """
        if not 0 < len(prompt_tokens) < n_ctx:
            raise ValueError(f"a prompt of {len(prompt_tokens)} tokens leaves no room in a context of {n_ctx}")
        self.request = request
        self.tokens = prompt_tokens
        """Prompt and answer; the answer's tokens are appended as they are chosen."""
        self.coverage = Coverage(request.blend) if coverage is None else coverage
        """Which tokens run under which blend."""
        self.n_prompt = len(prompt_tokens)
        self.n_answer_max = min(request.max_tokens, n_ctx - self.n_prompt)
        self.n_computed = 0
        """Tokens whose keys and values are in the cache."""
        self.n_cached = 0
        """Prompt tokens that were found in the cache when the sequence began."""
        self.guess: tuple[int, ...] = ()
        """What the client expects the answer to be."""
        self.n_drafted = 0
        """Tokens that were drafted for the answer."""
        self.n_accepted = 0
        """Those of them that were accepted."""
        self.sequence_id = -1
        """llama.cpp's id while the sequence runs."""
        self._state = State.WAITING

    @property
    def state(self) -> State:
        """The current state; ``move`` changes it."""
        return self._state

    def move(self, state: State) -> None:
        """Go to ``state``.

        Raises:
            IllegalMoveError: the table does not allow it; nothing has changed.
        """
        if state not in MOVES[self._state]:
            raise IllegalMoveError(f"{self.request_id}: {self._state.name} to {state.name}")
        self._state = state

    @property
    def request_id(self) -> str:
        """The request's id."""
        return self.request.request_id

    @property
    def blend(self) -> Blend:
        """The adapters that it needs a place for: those of its request, or none if no token invokes them."""
        return self.coverage.blend

    @property
    def next_blend(self) -> Blend:
        """The blend that its next pending token runs under."""
        return self.coverage.blend_at(self.n_computed)

    @property
    def is_scored(self) -> bool:
        """Whether the logprobs of its prompt are wanted: all of the prompt is then computed."""
        return self.request.scores_prompt

    @property
    def n_answer(self) -> int:
        """Tokens of the answer that are chosen so far."""
        return len(self.tokens) - self.n_prompt

    @property
    def n_pending(self) -> int:
        """Tokens that have to go through the model before the next token can be chosen."""
        return len(self.tokens) - self.n_computed

    def n_runnable(self, blends: Container[Blend]) -> int:
        """Leading pending tokens that run under no other blend than these."""
        if self.next_blend not in blends:
            return 0
        if self.coverage.blend in blends:
            return self.n_pending
        return min(self.n_pending, self.coverage.start - self.n_computed)

    @property
    def n_cells_max(self) -> int:
        """The most cells it can hold: the last token of an answer never goes through the model."""
        return self.n_prompt + max(0, self.n_answer_max - 1)

    @property
    def usage(self) -> Usage:
        """The counts of the answer so far."""
        return Usage(self.n_prompt, self.n_answer, self.n_cached, self.n_drafted, self.n_accepted)

    @property
    def is_running(self) -> bool:
        """Whether it holds cells and takes part in batches."""
        return self._state in (State.PREFILL, State.DECODE)
