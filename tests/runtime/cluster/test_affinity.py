"""Where requests go: where a blend is warm while there is room, else by hash, so that each replica has its share."""

from __future__ import annotations

import random
from collections import Counter, OrderedDict

import pytest

from runtime.cluster.affinity import LOAD_FACTOR, ReplicaLoad, Warmth, key_of, order
from runtime.generation import Blend, BlendMember, GenerationRequest, Prompt, Segment

KEYS = [f"{number:064x}:1" for number in range(1000)]


def idle(n_replicas: int) -> list[ReplicaLoad]:
    """Replicas without any request."""
    return [ReplicaLoad(str(number), 0, n_parallel=8) for number in range(n_replicas)]


def first_of(key: str, replicas: list[ReplicaLoad]) -> str:
    """The name of the replica that a request goes to."""
    return replicas[order(key, replicas)[0]].name


def fill(key: str, n_replicas: int, n_requests: int) -> Counter[str]:
    """How many requests each replica gets while none ends; a replica that got one is warm."""
    loads = Counter({str(number): 0 for number in range(n_replicas)})
    for _ in range(n_requests):
        replicas = [ReplicaLoad(name, n, is_warm=n > 0, n_parallel=8) for name, n in sorted(loads.items())]
        loads[first_of(key, replicas)] += 1
    return loads


def request(text: str, *members: BlendMember) -> GenerationRequest:
    """A request of one segment."""
    return GenerationRequest("r", Prompt((Segment(text, has_control_tokens=False),)), blend=Blend(members))


def test_every_replica_stands_in_the_order_once() -> None:
    """The order holds each replica once, whatever their loads are."""
    replicas = [
        ReplicaLoad("0", 50),
        ReplicaLoad("1", 0, is_serving=False),
        ReplicaLoad("2", 3, n_parallel=8),
        ReplicaLoad("3", 0),
    ]
    for key in KEYS[:50]:
        assert sorted(order(key, replicas)) == [0, 1, 2, 3]


def test_without_load_each_replica_has_its_share() -> None:
    """A thousand keys over five replicas: each has between 160 and 240."""
    counts = Counter(first_of(key, idle(5)) for key in KEYS)
    assert len(counts) == 5
    assert all(160 <= n <= 240 for n in counts.values()), counts


def test_a_replica_that_joins_takes_its_share_and_moves_nothing_else() -> None:
    """Every key that moves when a sixth replica joins moves to it, and about a sixth of all keys do."""
    before = {key: first_of(key, idle(5)) for key in KEYS}
    after = {key: first_of(key, idle(6)) for key in KEYS}
    moved = [key for key in KEYS if before[key] != after[key]]
    assert {after[key] for key in moved} == {"5"}
    assert 120 <= len(moved) <= 215


def test_a_replacement_of_the_same_name_changes_nothing() -> None:
    """The order depends on names and loads, not on the position in the list."""
    replicas = idle(4)
    for key in KEYS[:100]:
        assert first_of(key, replicas) == first_of(key, replicas[::-1])


def test_a_blend_stays_while_its_replica_has_a_free_place() -> None:
    """Seven of eight places taken elsewhere than idle replicas: the warm one is still the first."""
    key, names = KEYS[0], ("0", "1")
    home = first_of(key, idle(2))
    loads = {home: 7, names[1 - names.index(home)]: 0}
    warm = [ReplicaLoad(name, loads[name], is_warm=name == home, n_parallel=8) for name in names]
    assert first_of(key, warm) == home
    cold = [ReplicaLoad(name, loads[name], n_parallel=8) for name in names]
    assert first_of(key, cold) != home


def test_a_hot_blend_spreads_over_as_few_replicas_as_it_needs() -> None:
    """Forty requests for one blend over eight replicas of eight places: five replicas have them, all others none."""
    loads = fill(KEYS[0], 8, 40)
    assert sorted(loads.values(), reverse=True) == [8, 8, 8, 8, 8, 0, 0, 0]


def test_beyond_the_places_the_load_is_bounded() -> None:
    """Four hundred requests for one blend over four replicas: none has more than 1.25 times the mean, rounded up."""
    loads = fill(KEYS[1], 4, 400)
    assert max(loads.values()) <= LOAD_FACTOR * 100 + 1


def test_a_replica_that_does_not_serve_is_the_last() -> None:
    """Requests go to replicas that answer, however many requests those have."""
    replicas = [ReplicaLoad("0", 90), ReplicaLoad("1", 0, is_serving=False), ReplicaLoad("2", 80)]
    for key in KEYS[:50]:
        assert order(key, replicas)[-1] == 1


def test_no_replica_serves() -> None:
    """While all replicas start, each is still named, so that the request can wait at one."""
    replicas = [ReplicaLoad("0", 0, is_serving=False), ReplicaLoad("1", 0, is_serving=False)]
    assert sorted(order(KEYS[0], replicas)) == [0, 1]
    assert order(KEYS[0], []) == []


def test_keys_are_blends_whatever_the_prompt() -> None:
    """Adapters and scales make the key; names that clients gave them and prompts do not."""
    pirate, half = BlendMember("a" * 64, name="pirate"), BlendMember("a" * 64, 0.5)
    assert key_of(request("one", pirate)) == key_of(request("two", BlendMember("a" * 64, name="captain")))
    assert key_of(request("one", pirate)) != key_of(request("one", half))
    assert key_of(request("one", pirate)) != key_of(request("one", pirate, BlendMember("b" * 64)))


def test_prompts_for_the_base_model_go_by_their_beginning() -> None:
    """A conversation that goes on has the key of its beginning; other conversations have others."""
    system = "You are a librarian who answers in one sentence. " * 8
    assert key_of(request(system + "Hello")) == key_of(request(system + "Hello\nHi\nAnd now?"))
    assert key_of(request("Hello")) != key_of(request("Good day"))
    assert key_of(GenerationRequest("r", Prompt((), tokens=(2, 3)))) != key_of(
        GenerationRequest("r", Prompt((), tokens=(2, 4)))
    )


def test_a_replica_is_warm_for_as_many_blends_as_it_has_lanes() -> None:
    """The ninth blend makes the one that was used least recently cold; prefixes of the base model take no lane."""
    warmth, base = Warmth(), key_of(request("Hello"))
    warmth.note("r", base, 8)
    for key in (*KEYS[:8], KEYS[0], KEYS[8]):
        warmth.note("r", key, 8)
    assert not warmth.is_warm("r", KEYS[1])
    assert all(warmth.is_warm("r", key) for key in (base, KEYS[0], *KEYS[2:9]))
    assert not warmth.is_warm("another", KEYS[0])
    warmth.keep(["another"])
    assert not warmth.is_warm("r", KEYS[0])


class Lanes:
    """One replica's lanes, the least recently used one refilled."""

    def __init__(self, n_lanes: int) -> None:
        self._n_lanes = n_lanes
        self._used: OrderedDict[str, None] = OrderedDict()
        self.n_hits = 0

    def use(self, key: str) -> None:
        """Count a hit, or fill a lane."""
        self.n_hits += key in self._used
        self._used[key] = None
        self._used.move_to_end(key)
        if len(self._used) > self._n_lanes:
            self._used.popitem(last=False)


@pytest.mark.parametrize("seed", range(5))
def test_lane_hits_are_near_those_of_the_best_placement(seed: int) -> None:
    """64 adapters of Zipf's popularity, 2 replicas of 8 lanes, 12 in flight: at least 0.93 of an oracle's hits."""
    rng = random.Random(seed)
    keys = [f"{rng.getrandbits(256):064x}:1" for _ in range(64)]
    popularity = [1 / (rank + 1) for rank in range(64)]
    trace = rng.choices(keys, popularity, k=20_000)
    # The oracle knows the popularities: it gives the next most popular adapter to the replica that has less to do.
    home, shares = {}, [0.0, 0.0]
    for key, share in zip(keys, popularity, strict=True):
        home[key] = shares.index(min(shares))
        shares[home[key]] += share
    oracle, affine = [Lanes(8), Lanes(8)], [Lanes(8), Lanes(8)]
    running: list[int] = []
    warmth = Warmth()
    for key in trace:
        oracle[home[key]].use(key)
        if len(running) >= 12:
            running.pop(rng.randrange(len(running)))
        replicas = [
            ReplicaLoad(name, running.count(number), is_warm=warmth.is_warm(name, key), n_parallel=8)
            for number, name in enumerate("01")
        ]
        running.append(order(key, replicas)[0])
        warmth.note(str(running[-1]), key, 8)
        affine[running[-1]].use(key)
    assert sum(one.n_hits for one in affine) >= 0.93 * sum(one.n_hits for one in oracle)
