"""Requests that come to routers, and replicas that answer them, event by event. Pure: one seed gives one result."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scripts.simulate.replica import N_LANES, N_PARALLEL, Figures, Replica, Request
from scripts.simulate.routing import Policy


@dataclass(frozen=True, slots=True)
class Workload:
    """What is asked: adapters by a power law, requests that come independently of each other."""

    n_adapters: int
    exponent: float
    """Adapter k is asked for in proportion to k to the power of minus this."""
    n_preface: int
    """Tokens that all prompts of one adapter begin with: its system message."""
    own_tokens: tuple[int, int]
    """Fewest and most tokens of a prompt after its preface; each number between them is equally likely."""
    answer_tokens: tuple[int, int]

    @property
    def shares(self) -> NDArray[np.float64]:
        """Each adapter's share of the requests."""
        weights: NDArray[np.float64] = np.arange(1, self.n_adapters + 1, dtype=np.float64) ** -self.exponent
        return np.asarray(weights / weights.sum())

    def warm_capacity(self, figures: Figures) -> float:
        """Requests a second of one full replica that finds every adapter in a lane and every preface in its cache."""
        own, answer = sum(self.own_tokens) / 2, sum(self.answer_tokens) / 2
        prompt_s = figures.seen_prefix_s + own * figures.prompt_token_s
        return 1 / (prompt_s + answer * figures.step_s[N_PARALLEL] / N_PARALLEL)

    def requests(self, n_requests: int, rate: float, seed: int) -> list[Request]:
        """Requests in the order in which they come, ``rate`` of them a second."""
        generator = np.random.default_rng(seed)
        came = np.cumsum(generator.exponential(1 / rate, n_requests))
        adapters = generator.choice(self.n_adapters, n_requests, p=self.shares)
        own = generator.integers(*self.own_tokens, n_requests, endpoint=True)
        answers = generator.integers(*self.answer_tokens, n_requests, endpoint=True)
        columns = (adapters.tolist(), came.tolist(), own.tolist(), answers.tolist())
        rows = zip(*columns, strict=True)
        return [Request(adapter, at_s, self.n_preface, n_own, n_answer) for adapter, at_s, n_own, n_answer in rows]

    def best_lane_share(self, n_replicas: int) -> float:
        """Share of the requests that a fixed placement of adapters on lanes could serve.

        The most popular adapters have lanes, each as many as the replicas that it fills. What a router that knew the
        future could gain beyond that is not counted.
        """
        lanes = np.cumsum(np.ceil(self.shares * n_replicas))
        return float(self.shares[lanes <= n_replicas * N_LANES].sum())


class World:
    """Routers and replicas at one moment.

    Requests come to the routers in turns; each router knows its own requests alone.
    """

    def __init__(self, policies: list[Policy], replicas: list[Replica]) -> None:
        self._policies = policies
        self._replicas = replicas
        self._loads = [np.zeros(len(replicas), dtype=np.int64) for _ in policies]
        self._router_of: dict[int, int] = {}
        self._changes: list[tuple[float, int, int]] = []
        """(when, replica, version of its state), as a heap; of earlier versions there is nothing to be done."""
        self._versions = [0] * len(replicas)

    def run(self, requests: list[Request], on_progress: Callable[[int], None]) -> None:
        """Let every request be routed and answered; what became of each is written into it.

        Args:
            requests: in the order in which they come.
            on_progress: called now and then with the number of requests that have come.
        """
        for index, request in enumerate(requests):
            self._go_on(request.came_s)
            self._route(index % len(self._policies), request)
            if index % 1000 == 0:
                on_progress(index)
        self._go_on(float("inf"))

    def _route(self, router: int, request: Request) -> None:
        chosen = self._policies[router].choose(request.adapter, self._loads[router])
        self._advance(chosen, request.came_s)
        if self._replicas[chosen].submit(request, request.came_s):
            request.replica = chosen
            self._loads[router][chosen] += 1
            self._router_of[id(request)] = router
        self._schedule(chosen)

    def _go_on(self, until_s: float) -> None:
        while self._changes and self._changes[0][0] <= until_s:
            now_s, number, version = heapq.heappop(self._changes)
            if version == self._versions[number]:
                self._advance(number, now_s)
                self._schedule(number)

    def _advance(self, number: int, now_s: float) -> None:
        for ended in self._replicas[number].advance(now_s):
            self._loads[self._router_of.pop(id(ended))][number] -= 1

    def _schedule(self, number: int) -> None:
        self._versions[number] += 1
        at_s = self._replicas[number].next_change_s()
        if at_s is not None:
            heapq.heappush(self._changes, (at_s, number, self._versions[number]))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run was like, over the requests that came after its first half. Times in seconds."""

    lane_share: float
    """Share of the answered requests that found their adapter in a lane."""
    prefix_share: float
    refused_share: float
    median_first_s: float
    p99_first_s: float
    median_token_s: float
    """Median of the answers' times for each token after the first."""
    replicas_of_most_popular: int
    busiest: float
    """Requests of the replica that got most, in means."""


def outcome_of(requests: list[Request], n_replicas: int) -> Outcome:
    """Sum a run up; its first half only fills lanes and caches."""
    counted = requests[len(requests) // 2 :]
    answered = [one for one in counted if one.replica >= 0]
    first = np.array([one.first_token_s - one.came_s for one in answered])
    token = np.array([(one.ended_s - one.first_token_s) / max(one.n_answer - 1, 1) for one in answered])
    by_replica = np.bincount([one.replica for one in answered], minlength=n_replicas)
    return Outcome(
        lane_share=float(np.mean([one.is_in_lane for one in answered])),
        prefix_share=float(np.mean([one.is_prefix_seen for one in answered])),
        refused_share=1 - len(answered) / len(counted),
        median_first_s=float(np.median(first)),
        p99_first_s=float(np.percentile(first, 99)),
        median_token_s=float(np.median(token)),
        replicas_of_most_popular=len({one.replica for one in answered if one.adapter == 0}),
        busiest=float(by_replica.max() / by_replica.mean()),
    )
