"""Ways of choosing a replica for an adapter, all on the same rendezvous weights. Pure.

A router knows how many requests it has sent to each replica that have not ended yet, and nothing else.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from scripts.simulate.replica import N_LANES, N_PARALLEL

LOAD_FACTOR: Final = 1.25
"""That of runtime.cluster."""

Weights = Callable[[int], NDArray[np.uint64]]
"""A key's weight of each replica: its order of all replicas, the heaviest first."""


class Policy(Protocol):
    """One router's choice."""

    def choose(self, adapter: int, loads: NDArray[np.int64]) -> int:
        """The replica for a request, which is sent to it; ``loads`` are this router's running requests of each."""


def rendezvous(n_replicas: int) -> Weights:
    """Weights that depend on key and replica alone (splitmix64 of both)."""
    replicas = _mixed(np.arange(1, n_replicas + 1, dtype=np.uint64))

    def weights(key: int) -> NDArray[np.uint64]:
        return _mixed(replicas ^ _mixed(np.array([key], dtype=np.uint64)))

    return weights


class Random:
    """Any replica, whatever the adapter."""

    def __init__(self, n_replicas: int, seed: int) -> None:
        self._generator = np.random.default_rng(seed)
        self._n_replicas = n_replicas

    def choose(self, adapter: int, loads: NDArray[np.int64]) -> int:  # noqa: ARG002
        """Any replica."""
        return int(self._generator.integers(self._n_replicas))


class Consistent:
    """Always the adapter's own replica."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights

    def choose(self, adapter: int, loads: NDArray[np.int64]) -> int:  # noqa: ARG002
        """The heaviest replica."""
        return int(np.argmax(self._weights(adapter)))


class Bounded:
    """The first replica of the adapter's order that has at most ``factor`` times its share of the running requests.

    This is HAProxy's rule: consistent hashing with bounded loads.
    """

    def __init__(self, weights: Weights, factor: float) -> None:
        self._weights = weights
        self._factor = factor

    def choose(self, adapter: int, loads: NDArray[np.int64]) -> int:
        """The heaviest replica with room; with a factor above 1 there always is one."""
        bound = math.ceil(self._factor * (int(loads.sum()) + 1) / len(loads))
        return int(np.argmax(np.where(loads < bound, self._weights(adapter), np.uint64(0))))


class Warm:
    """``runtime.cluster.affinity``: a replica that was sent the adapter lately comes first and may be fuller.

    A warm replica takes up to 1.25 times the mean, and its parallel sequences in any case; a cold one takes up to the
    mean. Where none has room, the least loaded takes the request.
    """

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._lanes: dict[int, OrderedDict[int, None]] = {}
        self._warm: dict[int, set[int]] = {}

    def choose(self, adapter: int, loads: NDArray[np.int64]) -> int:
        """The replica that the order of the cluster's rule puts first."""
        mean = (int(loads.sum()) + 1) / len(loads)
        bound = max(N_PARALLEL, math.ceil(LOAD_FACTOR * mean))
        weights = self._weights(adapter)
        warm = [one for one in self._warm.get(adapter, ()) if loads[one] < bound]
        if warm:
            chosen = max(warm, key=lambda one: int(weights[one]))
        else:
            has_room = loads < math.ceil(mean)
            chosen = int(np.argmax(np.where(has_room, weights, np.uint64(0))))
        self._note(chosen, adapter)
        return chosen

    def _note(self, replica: int, adapter: int) -> None:
        lanes = self._lanes.setdefault(replica, OrderedDict())
        lanes[adapter] = None
        lanes.move_to_end(adapter)
        self._warm.setdefault(adapter, set()).add(replica)
        if len(lanes) > N_LANES:
            gone, _ = lanes.popitem(last=False)
            self._warm[gone].discard(replica)


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finisher of splitmix64.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (2014).
    """
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
