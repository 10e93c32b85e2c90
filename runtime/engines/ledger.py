"""The requests in flight: from submission to the one end, over as many engine processes as that takes.

An engine that ends takes no request with it that can begin again unseen. Requests that ran at its end are suspects:
each begins again alone, so that a second death names the request that causes them, and only that one is refused.
Knows no process and no clock.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, replace

from runtime.engines.protocol import GenerationEvent, Restarted
from runtime.errors import EngineDied, GemlaneError, HarmfulRequest, from_code
from runtime.generation import GenerationRequest
from runtime.messages import Failed, Finished, PromptScores, Text

MAX_RUNS = 2
"""Runs of one request that may end with the engine's; a death that a known request caused counts for no other."""
REFUSAL_S = 600.0
"""How long a harmful request is refused, and how long a suspect stays one: an innocent one comes back then."""
_MAX_HARMFUL = 1024
_CUT = "the engine process ended while this request was running; it is being restarted"
_HARMFUL = "the engine process ended twice while this request was running; it is not run again"


@dataclass(frozen=True, slots=True)
class Losses:
    """What one death cost."""

    n_again: int
    """Requests that run again."""
    n_cut: int
    """Requests that were failed, because their text was on its way or they had run twice."""
    n_harmful: int
    """Requests that are refused from now on: the causes of two deaths."""


class Ticket:
    """One request, its events that were not taken yet, and how far it came. Owned by the ledger."""

    def __init__(self, request: GenerationRequest, *, can_restart: bool) -> None:
        self.request = request
        self.fingerprint = fingerprint_of(request)
        self.can_restart = can_restart
        """Whether the caller takes a ``Restarted`` event after text."""
        self.n_deaths = 0
        """Engines that ended while they ran it, and for which no other request is known to be the cause."""
        self.n_tokens = 0
        """Tokens of its answer that the present engine has sent."""
        self.has_text = False
        """Whether the caller has taken text, or a prompt's logprobs."""
        self._events: asyncio.Queue[GenerationEvent | GemlaneError] = asyncio.Queue()

    @property
    def request_id(self) -> str:
        """The request's id."""
        return self.request.request_id

    @property
    def would_be_cut(self) -> bool:
        """Whether it cannot begin again without its client seeing it."""
        return self.has_text and not self.can_restart

    def put(self, event: GenerationEvent | GemlaneError) -> None:
        """Give the caller an event."""
        if isinstance(event, Text):
            self.n_tokens += event.n_tokens
        self._events.put_nowait(event)

    def begin_again(self) -> None:
        """Forget what the ended engine sent; the caller is notified if it has taken text."""
        while not self._events.empty():
            self._events.get_nowait()
        if self.has_text:
            self.put(Restarted(self.request_id))
        self.has_text, self.n_tokens = False, 0

    async def take(self) -> AsyncGenerator[GenerationEvent, None]:
        """The events, up to and with the end.

        Raises:
            GemlaneError: the end is a failure.
        """
        while True:
            event = await self._events.get()
            if isinstance(event, GemlaneError):
                raise event
            if isinstance(event, PromptScores | Text | Finished):
                self.has_text = True
            yield event
            if isinstance(event, Finished):
                return


class Ledger:
    """Every request in flight, in the order of submission. One event loop owns it.

    Where a method takes ``now``, it is the time of a monotonic clock in seconds.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, Ticket] = {}
        """Those that the present engine does not have."""
        self._sent: dict[str, Ticket] = {}
        self._running: frozenset[str] = frozenset()
        """Ids of the requests that took part in the engine's last announced work."""
        self._suspects: dict[str, int] = {}
        """Fingerprints of requests that ran at the last death, and how many tokens they had answered by then."""
        self._suspected_at = 0.0
        self._harmful: dict[str, float] = {}
        """Fingerprints of refused requests, and when their refusal began."""

    def __len__(self) -> int:
        """How many requests are in flight."""
        return len(self._waiting) + len(self._sent)

    @property
    def n_waiting(self) -> int:
        """How many requests the present engine does not have."""
        return len(self._waiting)

    @property
    def n_sent(self) -> int:
        """How many requests the present engine has."""
        return len(self._sent)

    def add(self, request: GenerationRequest, now: float, *, can_restart: bool) -> Ticket:
        """Take a request in.

        Raises:
            HarmfulRequest: the same request ended the engine twice in the last ten minutes.
        """
        ticket = Ticket(request, can_restart=can_restart)
        if now - self._harmful.get(ticket.fingerprint, -math.inf) < REFUSAL_S:
            raise HarmfulRequest(_HARMFUL)
        if now - self._suspected_at >= REFUSAL_S:
            self._suspects.clear()
        self._waiting[request.request_id] = ticket
        return ticket

    def remove(self, request_id: str) -> bool:
        """The caller has left; True if the engine must be sent the cancellation."""
        self._waiting.pop(request_id, None)
        return self._sent.pop(request_id, None) is not None

    def take_sendable(self) -> list[GenerationRequest]:
        """The requests that the engine may have now; they count as sent.

        A suspect does not wait for begun streams: they may go on for minutes, and all who come would wait too.
        """
        if not self._waiting:
            return []
        suspects = [ticket for ticket in self._waiting.values() if ticket.fingerprint in self._suspects]
        held = [ticket for ticket in self._sent.values() if ticket.fingerprint in self._suspects]
        if not suspects and not held:
            chosen = list(self._waiting.values())
        elif held:
            chosen = []
        else:  # those first whose clients would see nothing of another death
            chosen = sorted(suspects, key=lambda ticket: not ticket.can_restart)[:1]
        for ticket in chosen:
            self._sent[ticket.request_id] = self._waiting.pop(ticket.request_id)
        return [ticket.request for ticket in chosen]

    def announce(self, request_ids: Iterable[str]) -> None:
        """Note which requests the engine runs from now on."""
        self._running = frozenset(request_ids)

    def deliver(self, event: GenerationEvent | Failed) -> None:
        """Give one event to its request; those of a request that was cancelled are dropped."""
        ticket = self._sent.get(event.request_id)
        if ticket is None:
            return
        ticket.put(from_code(event.code, event.message) if isinstance(event, Failed) else event)
        is_end = isinstance(event, Finished | Failed)
        if is_end:
            del self._sent[event.request_id]
        if is_end or ticket.n_tokens > self._suspects.get(ticket.fingerprint, ticket.n_tokens):
            self._suspects.pop(ticket.fingerprint, None)

    def fail_waiting(self, error: GemlaneError, ticket: Ticket | None = None) -> None:
        """End one request that the engine does not have, or all of them."""
        for each in list(self._waiting.values()):
            if ticket is None or each is ticket:
                del self._waiting[each.request_id]
                each.put(error)

    def fail_all(self, error: GemlaneError) -> None:
        """End every request."""
        for ticket in (*self._sent.values(), *self._waiting.values()):
            ticket.put(error)
        self._sent.clear()
        self._waiting.clear()

    def lose_engine(self, now: float) -> Losses:
        """The engine ended: what can begin again waits for the next one, the rest ends here."""
        ran = [ticket for ticket in self._sent.values() if ticket.request_id in self._running]
        ran = ran or list(self._sent.values())
        self._running = frozenset()
        causes = {ticket.fingerprint for ticket in ran} & set(self._suspects)
        n_harmful = 0
        if len(causes) == 1:
            n_harmful = self._refuse(causes.pop(), now)
        else:
            self._suspect(ran, now)
        cut = [ticket for ticket in self._sent.values() if ticket.would_be_cut or ticket.n_deaths >= MAX_RUNS]
        for ticket in cut:
            del self._sent[ticket.request_id]
            ticket.put(EngineDied(_CUT))
        for ticket in self._sent.values():
            ticket.begin_again()
        losses = Losses(n_again=len(self._sent), n_cut=len(cut), n_harmful=n_harmful)
        self._waiting, self._sent = self._sent | self._waiting, {}
        return losses

    def _suspect(self, tickets: list[Ticket], now: float) -> None:
        """Note who ran at a death of unknown cause."""
        for ticket in tickets:
            ticket.n_deaths += 1
        self._suspects = {ticket.fingerprint: ticket.n_tokens for ticket in tickets}
        self._suspected_at = now

    def _refuse(self, cause: str, now: float) -> int:
        """End the request that caused two deaths, wherever it stands, and clear all others of suspicion."""
        self._harmful[cause] = now
        if len(self._harmful) > _MAX_HARMFUL:
            del self._harmful[next(iter(self._harmful))]
        self._suspects.clear()
        n_refused = 0
        for tickets in (self._sent, self._waiting):
            for ticket in [ticket for ticket in tickets.values() if ticket.fingerprint == cause]:
                del tickets[ticket.request_id]
                ticket.put(HarmfulRequest(_HARMFUL))
                n_refused += 1
        return n_refused


def fingerprint_of(request: GenerationRequest) -> str:
    """The same for two requests that differ in nothing but their ids."""
    return hashlib.sha256(repr(replace(request, request_id="")).encode("utf-8", "backslashreplace")).hexdigest()
