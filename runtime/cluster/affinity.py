"""Which replica a request should go to: where its blend's lane and prefixes are warm, unless that replica is full.

Consistent hashing with bounded loads: every key has its own order of all replicas (rendezvous hashing), and a request
goes to the first of them that has room, those first that are warm. A key whose replicas are full spills to the next one
of its order, so that a hot blend spreads over as few replicas as it needs. A key that is warm nowhere loses nothing by
going elsewhere: such keys level the loads, and so a replica that joins takes its share. Pure policy: no Ray, no clock.

Source: Mirrokni, Thorup, Zadimoghaddam, "Consistent Hashing with Bounded Loads" (2016); Thaler and Ravishankar, "A
name-based mapping scheme for rendezvous" (1996).
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from runtime.generation import GenerationRequest

LOAD_FACTOR: Final = 1.25
"""How much more than the mean load a warm replica may have, once its own parallel sequences are not enough."""
_BASE: Final = "base:"
_MAX_PREFIXES: Final = 64
"""Prefixes of prompts for the base model that a replica is taken to keep."""
_PREFIX_CHARACTERS: Final = 256
"""Characters of a prompt for the base model that are compared: a system message or the beginning of a conversation."""


@dataclass(frozen=True, slots=True)
class ReplicaLoad:
    """One replica, as far as the choice is concerned."""

    name: str
    """Stable: a replica that replaces another one has its name."""
    n_requests: int
    """Requests that it has, running or waiting."""
    is_serving: bool = True
    is_warm: bool = False
    """Whether it has the blend in a lane, or the prefix in its cache."""
    n_parallel: int = 1
    """Sequences that it decodes at once."""


def key_of(request: GenerationRequest) -> str:
    """What is warm for this request elsewhere: the lane of its blend, or the prefix of a prompt for the base model."""
    if request.blend.is_base:
        return f"{_BASE}{request.prompt.text[:_PREFIX_CHARACTERS]}{request.prompt.tokens[:_PREFIX_CHARACTERS]}"
    return "+".join(f"{member.digest}:{member.scale:g}" for member in request.blend.members)


def order(key: str, replicas: Sequence[ReplicaLoad]) -> list[int]:
    """Indices of ``replicas``, the best first: with room, then by load, then those that do not serve."""
    serving = [replica for replica in replicas if replica.is_serving]
    mean = (sum(replica.n_requests for replica in serving) + 1) / max(len(serving), 1)

    def rank(index: int) -> tuple[bool, int, bool, int]:
        replica = replicas[index]
        bound = max(replica.n_parallel, math.ceil(LOAD_FACTOR * mean)) if replica.is_warm else math.ceil(mean)
        has_room = replica.n_requests < bound
        load = 0 if has_room else replica.n_requests
        return (not replica.is_serving, load, not replica.is_warm, -_weight(key, replica.name))

    return sorted(range(len(replicas)), key=rank)


class Warmth:
    """Which keys each replica is warm for: the last ones that it was sent, as many as it has lanes."""

    def __init__(self) -> None:
        self._blends: defaultdict[str, OrderedDict[str, None]] = defaultdict(OrderedDict)
        self._prefixes: defaultdict[str, OrderedDict[str, None]] = defaultdict(OrderedDict)

    def is_warm(self, replica_id: str, key: str) -> bool:
        """Whether the replica's last requests had that key."""
        return key in self._blends.get(replica_id, ()) or key in self._prefixes.get(replica_id, ())

    def note(self, replica_id: str, key: str, n_lanes: int) -> None:
        """The replica was sent a request with that key."""
        is_prefix = key.startswith(_BASE)
        keys = (self._prefixes if is_prefix else self._blends)[replica_id]
        keys[key] = None
        keys.move_to_end(key)
        while len(keys) > (_MAX_PREFIXES if is_prefix else n_lanes):
            keys.popitem(last=False)

    def keep(self, replica_ids: Collection[str]) -> None:
        """Forget all other replicas."""
        for known in (self._blends, self._prefixes):
            for gone in known.keys() - set(replica_ids):
                del known[gone]


def _weight(key: str, name: str) -> int:
    """The same on every machine and in every run."""
    return int.from_bytes(hashlib.blake2b(f"{name}\0{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest())
