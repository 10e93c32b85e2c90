"""The engine: requests become sequences, sequences share batches, tokens become text.

``step`` runs one batch. The engine knows neither the pipe nor threads: the caller submits requests and takes events.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable
from pathlib import Path

from runtime.engine.accepting import Accepting
from runtime.engine.adapters.protocol import Adapters
from runtime.engine.adapters.users import AdapterUsers
from runtime.engine.answering import Answering, ChosenToken
from runtime.engine.cache.disk import PrefixStore
from runtime.engine.cache.prefixes import Drop, Prefixes, Share
from runtime.engine.cache.saver import PrefixSaver
from runtime.engine.chunks import chunks_of
from runtime.engine.compiling import Compiling, compiling_limit_s
from runtime.engine.filling import Filling
from runtime.engine.lookup.drafter import Drafter
from runtime.engine.pace import Pace
from runtime.engine.scheduler import BatchPart, EngineLimits, Scheduler
from runtime.engine.sequence import Sequence, State
from runtime.engine.step_limit import MAX_LIMIT_S, StepLimit, reading_limit_s
from runtime.engine.tally import Tally
from runtime.errors import AdapterError, DecodeError, GemlaneError, UnsupportedGrammar
from runtime.generation import FinishReason, GenerationRequest
from runtime.llama.context import MAX_SEQUENCE_IDS, Context
from runtime.llama.grammar import GrammarMatcher
from runtime.llama.model import Model
from runtime.messages import (
    Accepted,
    AdapterAdded,
    AdapterRefused,
    AdapterRemoved,
    Event,
    Failed,
    Finished,
    Started,
    Stats,
    Working,
)

_LOG = logging.getLogger("gemlane.engine")
# The most kept prefixes; searching more would cost time at each admission.
_MAX_KEPT = 128


class LlamaEngine:
    """Owns the sequences and drives the model. One thread."""

    def __init__(
        self, model: Model, context: Context, adapters: Adapters, limits: EngineLimits, compiling: Compiling
    ) -> None:
        self._model = model
        self._context = context
        self._adapters = adapters
        self._limits = limits
        kept_ids = range(context.n_sequences, min(context.n_sequences + _MAX_KEPT, MAX_SEQUENCE_IDS))
        self._prefixes = Prefixes(limits.n_kv_cells, kept_ids)
        self._scheduler = Scheduler(limits, adapters.places, self._prefixes)
        self._saver: PrefixSaver | None = None
        self._pace = Pace(limits.step_budget_ms, limits.n_batch)
        self._drafter = Drafter(limits, frozenset(model.end_tokens))
        self._filling = Filling(limits, is_possible=model.is_repacked and context.n_sequences > limits.n_parallel)
        self._users = AdapterUsers()
        self._accepting = Accepting(model, adapters, self._users, limits.n_ctx)
        self._sequences: dict[str, Sequence] = {}
        self._compiling = compiling
        self._matchers: dict[Sequence, GrammarMatcher] = {}
        self._running: dict[Sequence, Answering] = {}
        self._events: list[Event] = []
        self._step_limit = StepLimit(model.n_params)
        self._announced: Working | None = None
        self.on_work: Callable[[Working], None] = lambda _work: None
        """Called before work that may take long or end the process."""
        self.is_blocked = False
        """Whether the last step had no batch because adapters or grammars are still being prepared."""
        self._tally = Tally()

    @property
    def is_idle(self) -> bool:
        """Whether the engine has no request."""
        return not self._sequences and not self._compiling

    def submit(self, request: GenerationRequest) -> list[Event]:
        """Accept a request; return the event that says so, or that of its refusal.

        A request with a grammar is accepted or refused by a later ``step``, once the grammar is compiled.
        """
        if request.request_id in self._sequences or request.request_id in self._compiling:
            _LOG.error("ignoring a second request %s", request.request_id)
            return []
        if request.sampling.grammar is not None:
            self._compiling.begin(request, request.sampling.grammar)
            self._announce(self._step_limit.limit_s(1))
            return []
        return [self._queue(request, None)]

    def _queue(self, request: GenerationRequest, matcher: GrammarMatcher | None) -> Event:
        """Let a request wait for its turn, unless it is refused."""
        self._announce(self._step_limit.limit_s(1), request.request_id)
        try:
            sequence = self._accepting.accept(request)
        except GemlaneError as error:
            return _failed(request, error)
        self._sequences[request.request_id] = sequence
        if matcher is not None:
            self._matchers[sequence] = matcher
        self._scheduler.add(sequence)
        self._tally.submitted(sequence)
        return Accepted(request.request_id, sequence.n_prompt)

    def _queue_compiled(self) -> None:
        """Let the requests wait for their turn whose grammars are compiled."""
        for request, outcome in self._compiling.take_done():
            if isinstance(outcome, GemlaneError):
                self._events.append(_failed(request, outcome))
            else:
                self._events.append(self._queue(request, outcome))

    def cancel(self, request_id: str) -> None:
        """End a request without an event; an unknown id is ignored, since the request may just have ended."""
        if sequence := self._sequences.get(request_id):
            self._end(sequence, State.CANCELLED)
        elif request_id in self._compiling:
            self._compiling.cancel(request_id)

    def add_adapter(self, digest: str, path: Path) -> Event:
        """Make an adapter known; the answer says whether it can be used."""
        self._announce(self._step_limit.limit_s(1) + reading_limit_s(path))
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
        self._queue_compiled()
        self._admit()
        self._prepare_adapters()
        batch = self._schedule()
        self._tidy_cache()
        for part, row in self._decode(batch):
            self._advance(part, row)
        self._tidy_cache()
        return self._take_events()

    def _admit(self) -> None:
        """Start the sequences whose turn it is."""
        admitted = self._scheduler.admit()
        if admitted:
            self._announce(self._step_limit.limit_s(self._limits.n_batch))
        for sequence in admitted:
            self._running[sequence] = Answering(sequence, self._context, self._matchers.pop(sequence, None))
            self._tally.admitted(sequence)
            self._drafter.begin(sequence)

    def _prepare_adapters(self) -> None:
        """Go on preparing the blends of running and waiting sequences; fail the sequences whose blend cannot be."""
        for blend, error in self._adapters.prepare():
            for sequence in (*self._scheduler.running, *self._scheduler.waiting):
                if sequence.blend == blend:
                    self._fail(sequence, error)
            self._adapters.forget(blend)

    def _schedule(self) -> list[BatchPart]:
        """Choose the batch, with its drafts; note whether the engine has to wait for one."""
        counts = (self._scheduler.n_decode, self._scheduler.n_prefill_sequences, self._scheduler.n_earlier)
        batch = self._drafter.extend(self._scheduler.schedule(self._pace.n_prefill(*counts)))
        self.is_blocked = not batch and (self._adapters.is_preparing or bool(self._compiling))
        self._announce(self._step_limit.limit_s(sum(part.width for part in batch)))
        return batch

    def _tidy_cache(self) -> None:
        """Apply the decisions about prefixes to llama.cpp's cache."""
        for operation in self._prefixes.take_operations():
            match operation:
                case Share(source_id, target_id, n_tokens):
                    self._context.share(source_id, target_id, n_tokens)
                case Drop(sequence_id):
                    self._context.remove(sequence_id)

    def _announce(self, limit_s: float, *request_ids: str) -> None:
        """Say which requests take part in the work that follows, and how long it may take."""
        running = [sequence.request_id for sequence in self._scheduler.running]
        limit_s += compiling_limit_s(self._model.n_vocab) if self._compiling else 0
        work = Working((*running, *self._compiling.request_ids, *request_ids), limit_s)
        if work != self._announced:
            self._announced = work
            self.on_work(work)

    def _fail(self, sequence: Sequence, error: GemlaneError) -> None:
        self._events.append(_failed(sequence.request, error))
        self._end(sequence, State.FAILED)

    def _decode(self, batch: list[BatchPart]) -> list[tuple[BatchPart, int]]:
        """Run a batch; return its parts with the rows of their logits, or nothing if it failed."""
        if not batch:
            return []
        self._tally.scheduled(batch)
        started = time.perf_counter()
        chunks = [chunks_of(part) for part in batch]
        ends = list(itertools.accumulate(map(len, chunks)))
        wanted = [chunk for chunks_of_part in chunks for chunk in chunks_of_part]
        n_filler = self._filling.fill_up(wanted, self._prefixes.n_cells_free)
        try:
            rows = self._adapters.decode(wanted)
        except (DecodeError, AdapterError) as error:
            for part in batch:
                self._fail(part.sequence, error)
            return []
        finally:
            if n_filler:
                self._context.remove(self._filling.sequence_id)
        self._count(batch, n_filler, 1000 * (time.perf_counter() - started))
        return [(part, rows[end - 1]) for part, end in zip(batch, ends, strict=True)]

    def _count(self, batch: list[BatchPart], n_filler: int, elapsed_ms: float) -> None:
        n_tokens = sum(part.width for part in batch)
        n_prefill = sum(part.width for part in batch if part.sequence.state is State.PREFILL)
        self._pace.observe(n_tokens - n_prefill, n_prefill, elapsed_ms)
        if not n_prefill:
            self._filling.observe(n_tokens, n_filler, elapsed_ms)
        self._step_limit.observe(n_tokens, elapsed_ms / 1000)
        self._tally.decoded(batch)
        self._drafter.observe(batch, elapsed_ms)

    def _advance(self, part: BatchPart, row: int) -> None:
        """Note what was computed; choose the next token if no token of the sequence is pending."""
        sequence, is_complete, running = part.sequence, part.completes, self._running[part.sequence]
        self._scheduler.computed(sequence, part.n_tokens)
        if sequence.state is State.PREFILL and sequence.request.scores_prompt:
            self._events += running.prompt_scores(part.n_tokens, row)
        if not is_complete:
            return
        if sequence.state is State.PREFILL:
            waits = self._tally.waits(sequence)
            self._events.append(Started(sequence.request_id, sequence.n_prompt, sequence.n_cached, *waits))
            if not sequence.n_answer_max:
                self._finish(sequence, FinishReason.LENGTH)
                return
            sequence.move(State.DECODE)
        self._answer(part, row)

    def _answer(self, part: BatchPart, row: int) -> None:
        """Choose the next token, and one more after each drafted token that was chosen; forget the rest of the draft.

        Args:
            part: a part of the last batch; no token of its sequence is pending.
            row: that of the logits after its last token.
        """
        sequence, n_before = part.sequence, part.sequence.n_accepted
        sequence.n_drafted += len(part.draft)
        for place in range(len(part.draft) + 1):
            try:
                choice = self._running[sequence].choose(row - len(part.draft) + place)
            except UnsupportedGrammar as error:
                self._fail(sequence, error)
                break
            is_drafted = part.draft[place : place + 1] == (choice.token,)
            sequence.n_accepted += is_drafted
            self._extend(sequence, choice)
            if not (is_drafted and sequence.is_running):
                break
            self._scheduler.computed(sequence, 1)
        self._drafter.verified(part, sequence.n_accepted - n_before)
        if part.draft and sequence.is_running:
            self._context.remove(sequence.sequence_id, sequence.n_computed)

    def _extend(self, sequence: Sequence, choice: ChosenToken) -> None:
        """Append a token to the answer, and finish the sequence if this token ends it."""
        if self._model.is_end(choice.token):
            self._finish(sequence, FinishReason.STOP, choice)
            return
        sequence.tokens.append(choice.token)
        running = self._running[sequence]
        self._events += running.text.push(self._model.piece(choice.token), choice.score)
        if running.is_complete:
            self._finish(sequence, FinishReason.STOP)
        elif sequence.n_answer == sequence.n_answer_max:
            self._finish(sequence, FinishReason.LENGTH)

    def _finish(self, sequence: Sequence, reason: FinishReason, end: ChosenToken | None = None) -> None:
        self._events += self._running[sequence].text.flush()
        self._events.append(Finished(sequence.request_id, reason, sequence.usage, end.score if end else None))
        self._end(sequence, State.FINISHED)

    def _end(self, sequence: Sequence, state: State) -> None:
        """Free everything that a sequence holds."""
        self._matchers.pop(sequence, None)
        if running := self._running.pop(sequence, None):
            running.free()
        self._scheduler.end(sequence, state)
        self._drafter.end(sequence)
        self._tally.ended(sequence)
        del self._sequences[sequence.request_id]
        for digest in self._users.release(sequence.request.blend):
            self._adapters.remove(digest)
            self._events.append(AdapterRemoved(digest))

    def _take_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events

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
        self._compiling.close()
        for running in self._running.values():
            running.free()
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
            n_drafted_tokens=self._drafter.n_drafted,
            n_accepted_tokens=self._drafter.n_accepted,
            n_steps_by_blends=tally.n_steps_by_blends,
            lanes=self._adapters.lane_stats,
            running_blends=tuple(dict.fromkeys(sequence.blend for sequence in running)),
            waiting_blends=tuple(dict.fromkeys(sequence.blend for sequence in waiting)),
        )


def _failed(request: GenerationRequest, error: GemlaneError) -> Failed:
    return Failed(request.request_id, error.code, str(error))
