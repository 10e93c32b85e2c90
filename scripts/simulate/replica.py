"""One replica as a fluid: its lanes, its prefixes, its queue, and how fast answers and prompts go on. Pure.

A step gives every running answer one token. While prompts wait, steps last the time budget of a step, and what answers
leave of it goes to the oldest prompt; a third of it at least, as the server does it. Figures are those that
``scripts.bench.replica`` measures.
"""

from __future__ import annotations

import heapq
import json
from collections import OrderedDict, deque
from dataclasses import dataclass
from pathlib import Path
from typing import Final

N_PARALLEL: Final = 8
N_LANES: Final = 8
MAX_QUEUE: Final = 64
N_CELLS: Final = 8192
"""The server's defaults; cells are those of a model whose context is 4,096."""
STEP_BUDGET_S: Final = 0.25
_MIN_PROMPT_SHARE: Final = 1 / 3


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured on one replica alone; seconds."""

    step_s: tuple[float, ...]
    """Time of a step with 0, 1, 2 ... ``N_PARALLEL`` answers, each under another adapter."""
    prompt_token_s: float
    seen_prefix_s: float
    """Time for a prefix that the cache holds, whatever its length."""
    fill_s: float
    """Time that the first step waits for an adapter that is in no lane."""
    source: str


def read_figures(path: Path) -> Figures:
    """The figures of a file; steps between measured numbers of answers are interpolated."""
    read = json.loads(path.read_text())
    known = {int(name.removeprefix("step_s_")): float(read[name]) for name in read if name.startswith("step_s_")}
    steps = [0.0]
    for number in range(1, N_PARALLEL + 1):
        below, above = max(n for n in known if n <= number), min(n for n in known if n >= number)
        share = (number - below) / (above - below) if above > below else 0.0
        steps.append(known[below] + share * (known[above] - known[below]))
    source = f"{read['model']}; {read['measured_on']}"
    return Figures(tuple(steps), read["prompt_token_s"], read["seen_prefix_s"], read["fill_s"], source)


@dataclass(slots=True)
class Request:
    """A request and what became of it; times in seconds."""

    adapter: int
    came_s: float
    n_preface: int
    """Tokens that all prompts of its adapter begin with."""
    n_own: int
    n_answer: int
    replica: int = -1
    """-1: refused, since the replica's queue was full."""
    is_in_lane: bool = False
    is_prefix_seen: bool = False
    first_token_s: float = -1.0
    ended_s: float = -1.0


class Replica:
    """The state of one replica at the last time it was looked at."""

    def __init__(self, figures: Figures, n_preface: int, n_request_cells: int) -> None:
        self._figures = figures
        self._now_s = 0.0
        self._steps_done = 0.0
        self._answers: list[tuple[float, int, Request]] = []
        """(number of the step after which it ends, tie-break, request), as a heap."""
        self._prompts: deque[list[float | Request]] = deque()
        """[seconds of work left, request], the oldest first."""
        self._waiting: deque[Request] = deque()
        self._lanes: OrderedDict[int, None] = OrderedDict()
        self._prefixes: OrderedDict[int, None] = OrderedDict()
        self._n_prefixes = max((N_CELLS - N_PARALLEL * n_request_cells) // max(n_preface, 1), 0)
        self._n_begun = 0
        self.busy_s = 0.0

    @property
    def n_requests(self) -> int:
        """Running or waiting."""
        return len(self._answers) + len(self._prompts) + len(self._waiting)

    def submit(self, request: Request, now_s: float) -> bool:
        """Take a request in; False: refused, the queue is full."""
        self.advance(now_s)
        if self.n_requests >= N_PARALLEL + MAX_QUEUE:
            return False
        self._waiting.append(request)
        self._admit()
        return True

    def next_change_s(self) -> float | None:
        """When the next prompt is read or the next answer ends; None while there is nothing to do."""
        prompt_rate, step_rate = self._rates()
        times = []
        if self._prompts:
            times.append(float(self._prompts[0][0]) / prompt_rate)  # type: ignore[arg-type]
        if self._answers:
            times.append((self._answers[0][0] - self._steps_done) / step_rate)
        return self._now_s + max(min(times), 0.0) if times else None

    def advance(self, now_s: float) -> list[Request]:
        """Go on to ``now_s``, which is no later than the next change; the requests that ended."""
        elapsed_s = now_s - self._now_s
        prompt_rate, step_rate = self._rates()
        if self._prompts or self._answers:
            self.busy_s += elapsed_s
        if self._prompts:
            self._prompts[0][0] -= elapsed_s * prompt_rate  # type: ignore[operator]
        self._steps_done += elapsed_s * step_rate
        self._now_s = now_s
        while self._prompts and self._prompts[0][0] <= 1e-9:  # type: ignore[operator]
            self._answer(self._prompts.popleft()[1])  # type: ignore[arg-type]
        ended = []
        while self._answers and self._answers[0][0] <= self._steps_done + 1e-9:
            request = heapq.heappop(self._answers)[2]
            request.ended_s = now_s
            ended.append(request)
        if ended:
            self._admit()
        return ended

    def _rates(self) -> tuple[float, float]:
        """Seconds of prompt work, and steps, in a second."""
        step_s = self._figures.step_s[len(self._answers)]
        if not self._prompts:
            return 0.0, 1 / step_s if self._answers else 0.0
        if not self._answers:
            return 1.0, 0.0
        length_s = max(STEP_BUDGET_S, step_s / (1 - _MIN_PROMPT_SHARE))
        return 1 - step_s / length_s, 1 / length_s

    def _answer(self, request: Request) -> None:
        request.first_token_s = self._now_s
        self._n_begun += 1
        heapq.heappush(self._answers, (self._steps_done + request.n_answer - 1, self._n_begun, request))

    def _admit(self) -> None:
        """Start what waits while there is room: find its lane and its prefix."""
        while self._waiting and len(self._answers) + len(self._prompts) < N_PARALLEL:
            request = self._waiting.popleft()
            request.is_in_lane = _use(self._lanes, request.adapter, N_LANES)
            request.is_prefix_seen = _use(self._prefixes, request.adapter, self._n_prefixes)
            figures, n_new = self._figures, request.n_own
            work_s = 0.0 if request.is_in_lane else figures.fill_s
            if request.is_prefix_seen:
                work_s += figures.seen_prefix_s
            else:
                n_new += request.n_preface
            self._prompts.append([work_s + n_new * figures.prompt_token_s, request])


def _use(kept: OrderedDict[int, None], key: int, n_kept: int) -> bool:
    """Whether a key is among the last ``n_kept`` used; it is the last one from now on."""
    is_there = key in kept
    kept[key] = None
    kept.move_to_end(key)
    if len(kept) > n_kept:
        kept.popitem(last=False)
    return is_there
