"""The engine: requests become sequences, sequences share batches, tokens become text.

``step`` runs one batch. The engine knows neither the pipe nor threads: the caller submits requests and takes events.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable
from collections.abc import Sequence as Row
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from runtime.engine.adapters.users import AdapterUsers
from runtime.engine.cache.disk import PrefixStore
from runtime.engine.cache.prefixes import Drop, Prefixes, Share
from runtime.engine.cache.saver import PrefixSaver
from runtime.engine.coverage import cover
from runtime.engine.pace import Pace
from runtime.engine.scheduler import BatchPart, EngineLimits, Places, Scheduler
from runtime.engine.sequence import Sequence, State
from runtime.engine.silence import MAX_LIMIT_S, SilenceLimit
from runtime.engine.tally import Tally
from runtime.engine.text.answer import AnswerText
from runtime.errors import AdapterError, ContextExceeded, DecodeError, GemlaneError, UnknownAdapter
from runtime.generation import Blend, FinishReason, GenerationRequest, Usage
from runtime.llama.context import MAX_SEQUENCE_IDS, Chunk, Context
from runtime.llama.model import Model
from runtime.llama.sampler import Sampler
from runtime.messages import (
    AdapterAdded,
    AdapterRefused,
    AdapterRemoved,
    Event,
    Failed,
    Finished,
    LaneStats,
    Started,
    Stats,
    Working,
)

_LOG = logging.getLogger("gemlane.engine")
# An adapter's file is read and checked at this speed at least: a slow memory card's.
_MIN_BYTES_PER_S = 5e6
# The most kept prefixes; searching more would cost time at each admission.
_MAX_KEPT = 128


class Adapters(Protocol):
    """How a batch runs under its adapters: mixed in lanes, or grouped."""

    @property
    def mode(self) -> str:
        """``mixed`` or ``grouped``."""

    @property
    def places(self) -> Places:
        """The policy that says which blends may share a batch."""

    @property
    def is_preparing(self) -> bool:
        """Whether a blend is being prepared; the engine is woken when it is ready."""

    @property
    def lane_stats(self) -> LaneStats:
        """The lanes by state; all zero without lanes."""

    def add(self, digest: str, path: Path) -> None:
        """Open and check an adapter; raises an AdapterError if it cannot be used."""

    def check(self, blend: Blend) -> tuple[int, ...]:
        """The token sequence that invokes a blend of known adapters, empty if it always applies.

        Raises:
            AdapterError: its adapters cannot be used together.
        """

    def prepare(self) -> list[tuple[Blend, AdapterError]]:
        """Prepare blends that have taken a place; return the blends that cannot be prepared, with their errors."""

    def forget(self, blend: Blend) -> None:
        """Drop what was prepared for a blend that no sequence uses."""

    def pin(self, digest: str, *, is_pinned: bool) -> None:
        """Keep the weights of an adapter where batches find them, or not any more."""

    def remove(self, digest: str) -> None:
        """Close an adapter that no sequence uses."""

    def decode(self, chunks: Row[tuple[Chunk, Blend]]) -> list[int]:
        """Run a batch; return the row of each chunk's logits, or -1."""

    def close(self) -> None:
        """Free the context and all other native memory."""


@dataclass(frozen=True, slots=True)
class _Running:
    """The sampler and the text of an admitted sequence."""

    sampler: Sampler
    answer: AnswerText


class LlamaEngine:
    """Owns the sequences and drives the model. One thread."""

    def __init__(self, model: Model, context: Context, adapters: Adapters, limits: EngineLimits) -> None:
        self._model = model
        self._context = context
        self._adapters = adapters
        self._limits = limits
        kept_ids = range(context.n_sequences, min(context.n_sequences + _MAX_KEPT, MAX_SEQUENCE_IDS))
        self._prefixes = Prefixes(limits.n_kv_cells, kept_ids)
        self._scheduler = Scheduler(limits, adapters.places, self._prefixes)
        self._saver: PrefixSaver | None = None
        self._pace = Pace(limits.step_budget_ms, limits.n_batch)
        self._users = AdapterUsers()
        self._sequences: dict[str, Sequence] = {}
        self._running: dict[Sequence, _Running] = {}
        self._events: list[Event] = []
        self._silence = SilenceLimit(model.n_params)
        self._announced: Working | None = None
        self.on_work: Callable[[Working], None] = lambda _work: None
        """Called before work that may take long or end the process."""
        self.is_blocked = False
        """Whether the last step had no batch because adapters are still being prepared."""
        self._tally = Tally()

    @property
    def is_idle(self) -> bool:
        """Whether the engine has no sequence."""
        return not self._sequences

    def submit(self, request: GenerationRequest) -> list[Event]:
        """Accept a request; return the event of its refusal, or no event."""
        if request.request_id in self._sequences:
            _LOG.error("ignoring a second request %s", request.request_id)
            return []
        self._announce(self._silence.limit_s(1), request.request_id)
        try:
            sequence = self._accept(request)
        except GemlaneError as error:
            return [_failed(request, error)]
        self._sequences[request.request_id] = sequence
        self._scheduler.add(sequence)
        self._tally.submitted(sequence)
        return []

    def _accept(self, request: GenerationRequest) -> Sequence:
        n_ctx = self._limits.n_ctx
        # A prompt of megabytes is refused unread: tokenising it would stop every stream for seconds.
        if self._model.min_tokens(request.prompt) >= n_ctx:
            raise _too_long(f"at least {n_ctx}", n_ctx)
        tokens = self._model.tokenize(request.prompt)
        if len(tokens) >= n_ctx:
            raise _too_long(str(len(tokens)), n_ctx)
        self._users.hold(request.blend)
        try:
            invocation = self._adapters.check(request.blend)
        except AdapterError:
            self._users.release(request.blend)
            raise
        return Sequence(request, tokens, n_ctx, cover(request.blend, invocation, tokens))

    def cancel(self, request_id: str) -> None:
        """End a request without an event; an unknown id is ignored, since the request may just have ended."""
        if sequence := self._sequences.get(request_id):
            self._end(sequence, State.CANCELLED)

    def add_adapter(self, digest: str, path: Path) -> Event:
        """Make an adapter known; the answer says whether it can be used."""
        self._announce(self._silence.limit_s(1) + _file_bytes(path) / _MIN_BYTES_PER_S)
        try:
            self._adapters.add(digest, path)
        except GemlaneError as error:
            return AdapterRefused(digest, error.code, str(error))
        self._users.put(digest)
        return AdapterAdded(digest)

    def remove_adapter(self, digest: str) -> list[Event]:
        """Let no later request use an adapter; the event is that it is gone, and comes once no request uses it."""
        if not self._users.has(digest):
            return [AdapterRemoved(digest)]
        if not self._users.remove(digest):
            return []
        self._adapters.remove(digest)
        return [AdapterRemoved(digest)]

    def pin_adapter(self, digest: str, *, is_pinned: bool) -> None:
        """Keep a known adapter's weights in a lane, or let the lane be given to others again."""
        if digest in self._users:
            self._adapters.pin(digest, is_pinned=is_pinned)

    def step(self) -> list[Event]:
        """Run one batch; return its events, in order."""
        admitted = self._scheduler.admit()
        if admitted:
            self._announce(self._silence.limit_s(self._limits.n_batch))
        for sequence in admitted:
            self._start(sequence)
        for blend, error in self._adapters.prepare():
            self._refuse(blend, error)
        batch = self._scheduler.schedule(
            self._pace.n_prefill(self._scheduler.n_decode, self._scheduler.n_prefill_sequences)
        )
        self.is_blocked = not batch and self._adapters.is_preparing
        self._announce(self._silence.limit_s(sum(part.n_tokens for part in batch)))
        self._tidy_cache()
        for part, row in self._decode(batch):
            self._advance(part, row)
        self._tidy_cache()
        events, self._events = self._events, []
        return events

    def _announce(self, limit_s: float, *request_ids: str) -> None:
        """Say which requests take part in the work that follows, and how long it may take."""
        running = tuple(sequence.request_id for sequence in self._scheduler.running)
        work = Working((*running, *request_ids), limit_s)
        if work != self._announced:
            self._announced = work
            self.on_work(work)

    def _start(self, sequence: Sequence) -> None:
        sampler = Sampler(sequence.request.sampling, sequence.tokens, self._context)
        self._running[sequence] = _Running(sampler, AnswerText(sequence.request))
        self._tally.admitted(sequence)

    def _tidy_cache(self) -> None:
        """Apply the decisions about prefixes to llama.cpp's cache."""
        for operation in self._prefixes.take_operations():
            match operation:
                case Share(source_id, target_id, n_tokens):
                    self._context.share(source_id, target_id, n_tokens)
                case Drop(sequence_id):
                    self._context.remove(sequence_id)

    def _refuse(self, blend: Blend, error: AdapterError) -> None:
        """Fail every sequence, running or waiting, whose blend cannot be prepared."""
        for sequence in (*self._scheduler.running, *self._scheduler.waiting):
            if sequence.blend == blend:
                self._fail(sequence, error)
        self._adapters.forget(blend)

    def _fail(self, sequence: Sequence, error: GemlaneError) -> None:
        self._events.append(_failed(sequence.request, error))
        self._end(sequence, State.FAILED)

    def _decode(self, batch: list[BatchPart]) -> list[tuple[BatchPart, int]]:
        """Run a batch; return its parts with the rows of their logits, or nothing if it failed."""
        if not batch:
            return []
        self._tally.scheduled(batch)
        started = time.perf_counter()
        chunks = [_chunks(part) for part in batch]
        try:
            rows = self._adapters.decode([chunk for chunks_of_part in chunks for chunk in chunks_of_part])
        except (DecodeError, AdapterError) as error:
            for part in batch:
                self._fail(part.sequence, error)
            return []
        self._count(batch, 1000 * (time.perf_counter() - started))
        ends = itertools.accumulate(map(len, chunks))
        return [(part, rows[end - 1]) for part, end in zip(batch, ends, strict=True)]

    def _count(self, batch: list[BatchPart], elapsed_ms: float) -> None:
        n_tokens = sum(part.n_tokens for part in batch)
        n_prefill = sum(part.n_tokens for part in batch if part.sequence.state is State.PREFILL)
        self._pace.observe(n_tokens - n_prefill, n_prefill, elapsed_ms)
        self._silence.observe(n_tokens, elapsed_ms / 1000)
        self._tally.decoded(batch)

    def _advance(self, part: BatchPart, row: int) -> None:
        """Note what was computed; choose the next token if no token of the sequence is pending."""
        sequence, is_complete = part.sequence, part.completes
        self._scheduler.computed(part)
        if not is_complete:
            return
        if sequence.state is State.PREFILL:
            waits = self._tally.waits(sequence)
            self._events.append(Started(sequence.request_id, sequence.n_prompt, sequence.n_cached, *waits))
            if not sequence.n_answer_max:
                self._finish(sequence, FinishReason.LENGTH)
                return
            sequence.move(State.DECODE)
        self._extend(sequence, self._running[sequence].sampler.sample(row))

    def _extend(self, sequence: Sequence, token: int) -> None:
        """Append a token to the answer, and finish the sequence if this token ends it."""
        if self._model.is_end(token):
            self._finish(sequence, FinishReason.STOP)
            return
        sequence.tokens.append(token)
        answer = self._running[sequence].answer
        self._events += answer.push(self._model.piece(token))
        if answer.is_stopped:
            self._finish(sequence, FinishReason.STOP)
        elif sequence.n_answer == sequence.n_answer_max:
            self._finish(sequence, FinishReason.LENGTH)

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        self._events += self._running[sequence].answer.flush()
        usage = Usage(sequence.n_prompt, sequence.n_answer, sequence.n_cached)
        self._events.append(Finished(sequence.request_id, reason, usage))
        self._end(sequence, State.FINISHED)

    def _end(self, sequence: Sequence, state: State) -> None:
        """Free everything that a sequence holds."""
        if running := self._running.pop(sequence, None):
            running.sampler.free()
        self._scheduler.end(sequence, state)
        self._tally.ended(sequence)
        del self._sequences[sequence.request_id]
        for digest in self._users.release(sequence.request.blend):
            self._adapters.remove(digest)
            self._events.append(AdapterRemoved(digest))

    def keep_prefixes_in(self, store: PrefixStore) -> int:
        """Restore the prefixes of a folder, and save hot prefixes there from now on; return how many were restored."""
        self._saver = PrefixSaver(self._context, self._prefixes, store)
        return self._saver.restore()

    def rest(self) -> bool:
        """Save one hot prefix while the engine is idle; return False if there is none to save."""
        if self._saver is None:
            return False
        self._announce(MAX_LIMIT_S)
        return self._saver.save_one()

    def close(self) -> None:
        """Save the hot prefixes and free all native memory; the engine cannot be used afterwards."""
        while self.is_idle and self.rest():
            pass
        for running in self._running.values():
            running.sampler.free()
        self._adapters.close()
        self._model.free()

    @property
    def stats(self) -> Stats:
        """What the engine holds now, and its counts since the start."""
        running, waiting, tally = self._scheduler.running, self._scheduler.waiting, self._tally
        return Stats(
            n_running=len(running),
            n_waiting=len(waiting),
            n_kv_cells_used=self._prefixes.n_cells_running,
            n_kv_cells_kept=self._prefixes.n_cells_kept,
            n_steps=tally.n_steps,
            n_decoded_tokens=tally.n_decoded_tokens,
            n_prompt_tokens=tally.n_prompt_tokens,
            n_cached_tokens=tally.n_cached_tokens,
            n_steps_by_blends=tally.n_steps_by_blends,
            lanes=self._adapters.lane_stats,
            running_blends=tuple(dict.fromkeys(sequence.blend for sequence in running)),
            waiting_blends=tuple(dict.fromkeys(sequence.blend for sequence in waiting)),
        )


def _failed(request: GenerationRequest, error: GemlaneError) -> Failed:
    name = error.name if isinstance(error, UnknownAdapter) else ""
    return Failed(request.request_id, error.code, str(error), name)


def _too_long(n_tokens: str, n_ctx: int) -> ContextExceeded:
    return ContextExceeded(
        f"the prompt has {n_tokens} tokens; at most {n_ctx - 1} leave room for an answer "
        f"in the context window of {n_ctx}"
    )


def _chunks(part: BatchPart) -> list[tuple[Chunk, Blend]]:
    """The tokens of a part and the blends they run under: one chunk, or two where an aLoRA is invoked in between."""
    sequence, coverage = part.sequence, part.sequence.coverage
    start, end = sequence.n_computed, sequence.n_computed + part.n_tokens
    middle = min(max(coverage.start, start), end)
    wants_logits = part.completes and sequence.n_answer_max > 0
    return [
        (
            Chunk(sequence.sequence_id, sequence.tokens[first:last], first, wants_logits and last == end),
            coverage.blend_at(first),
        )
        for first, last in ((start, middle), (middle, end))
        if first < last
    ]


def _file_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
