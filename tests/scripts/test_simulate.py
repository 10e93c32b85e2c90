"""The simulation of many replicas: one replica against arithmetic by hand, policies against their rules, one seed."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.cluster.affinity import ReplicaLoad, Warmth, order
from scripts.simulate.__main__ import main
from scripts.simulate.replica import MAX_QUEUE, N_LANES, N_PARALLEL, Figures, Replica, Request, read_figures
from scripts.simulate.routing import Bounded, Consistent, Policy, Random, Warm, rendezvous
from scripts.simulate.world import Workload, World, outcome_of

FIGURES = Figures((0.0, 0.05, 0.07, 0.09, 0.11, 0.13, 0.15, 0.17, 0.19), 0.01, 0.02, 0.1, "invented")
WORKLOAD = Workload(500, 1.0, 256, (8, 128), (8, 256))
N_REPLICAS = 10


def play(replica: Replica, until_s: float = math.inf) -> None:
    """Let a replica work."""
    while (at_s := replica.next_change_s()) is not None and at_s <= until_s:
        replica.advance(at_s)


def ask(replica: Replica, came_s: float = 0.0, adapter: int = 1, n_answer: int = 11) -> Request:
    """One request of 100 + 10 tokens of prompt."""
    request = Request(adapter, came_s, 100, 10, n_answer)
    assert replica.submit(request, came_s)
    return request


def test_a_request_alone_takes_what_was_measured() -> None:
    """The first one fills a lane and reads the preface; the second one finds both."""
    replica = Replica(FIGURES, 100, 200)
    first = ask(replica)
    play(replica)
    assert first.first_token_s == pytest.approx(0.1 + 110 * 0.01)
    assert first.ended_s == pytest.approx(1.2 + 10 * 0.05)
    second = ask(replica, 5.0)
    play(replica)
    assert second.first_token_s == pytest.approx(5.0 + 0.02 + 10 * 0.01)
    assert (first.is_in_lane, second.is_in_lane, second.is_prefix_seen) == (False, True, True)


def test_answers_share_steps() -> None:
    """Two answers at once take a step of two each; a prompt between them leaves them a step in each time budget."""
    replica = Replica(FIGURES, 100, 200)
    first, second = ask(replica, n_answer=1001), ask(replica, n_answer=1001)
    play(replica, 20.0)
    # Prompt 1: 1.2 s alone. Prompt 2 finds lane and preface: 0.12 s of work, beside steps of 0.05 s each 0.25 s.
    assert second.first_token_s == pytest.approx(1.2 + 0.12 / (1 - 0.05 / 0.25))
    play(replica)
    n_beside = 0.15 / 0.25
    n_together = 1000 - n_beside
    assert first.ended_s == pytest.approx(1.35 + n_together * 0.07)
    assert second.ended_s == pytest.approx(first.ended_s + n_beside * 0.05)


def test_a_ninth_request_waits_and_a_full_queue_refuses() -> None:
    """Requests begin up to the number decoded at once; then they wait up to the limit of the queue."""
    replica = Replica(FIGURES, 100, 200)
    asked = [ask(replica) for _ in range(N_PARALLEL + MAX_QUEUE)]
    assert not replica.submit(Request(1, 0.0, 100, 10, 5), 0.0)
    play(replica)
    assert all(one.ended_s > 0 for one in asked)
    assert asked[N_PARALLEL].first_token_s > asked[0].ended_s
    assert replica.n_requests == 0


def test_lanes_go_to_the_last_adapters() -> None:
    """One adapter more than lanes, asked in turns, is never in a lane; as many as lanes always are."""
    for n_adapters, expected in ((N_LANES + 1, 0), (N_LANES, 2 * N_LANES)):
        replica = Replica(FIGURES, 100, 200)
        found = 0
        for number in range(3 * n_adapters):
            request = ask(replica, number * 100.0, adapter=number % n_adapters)
            play(replica)
            found += request.is_in_lane
        assert found == expected


def policies() -> dict[str, Policy]:
    """One of each."""
    weights = rendezvous(N_REPLICAS)
    return {
        "random": Random(N_REPLICAS, 0),
        "consistent": Consistent(weights),
        "bounded": Bounded(weights, 1.25),
        "warm": Warm(weights),
    }


@pytest.mark.parametrize("name", policies())
def test_every_request_ends_once(name: str) -> None:
    """Each request is refused or answered, in the order of its times; the same run twice gives the same numbers."""
    outcomes = []
    for _ in range(2):
        requests = WORKLOAD.requests(1500, 0.6 * N_REPLICAS * WORKLOAD.warm_capacity(FIGURES), seed=3)
        replicas = [Replica(FIGURES, 256, 512) for _ in range(N_REPLICAS)]
        World([policies()[name]], replicas).run(requests, lambda _: None)
        assert all(replica.n_requests == 0 for replica in replicas)
        for one in requests:
            if one.replica >= 0:
                assert one.came_s < one.first_token_s <= one.ended_s
        outcomes.append(outcome_of(requests, N_REPLICAS))
    assert outcomes[0] == outcomes[1]
    if name != "consistent":
        assert outcomes[0].refused_share == 0


def test_affinity_finds_lanes_that_chance_does_not() -> None:
    """Of 64 equally popular adapters over 80 lanes, routing by adapter finds most in a lane, and chance does not."""
    workload = Workload(64, 0.0, 256, (8, 128), (8, 256))
    shares = {}
    for name, policy in policies().items():
        requests = workload.requests(2000, 0.3 * N_REPLICAS * workload.warm_capacity(FIGURES), seed=1)
        World([policy], [Replica(FIGURES, 256, 512) for _ in range(N_REPLICAS)]).run(requests, lambda _: None)
        shares[name] = outcome_of(requests, N_REPLICAS).lane_share
    assert shares["random"] < 0.2  # 8 lanes of 64 adapters: an eighth
    assert shares["consistent"] > 0.85
    assert shares["warm"] > 0.9
    assert shares["bounded"] > 3 * shares["random"]


def test_bounded_load_keeps_its_bound() -> None:
    """However hot one adapter is, no replica has more than its share times the factor, rounded up."""
    policy = Bounded(rendezvous(N_REPLICAS), 1.25)
    loads = np.zeros(N_REPLICAS, dtype=np.int64)
    for number in range(1, 200):
        loads[policy.choose(7, loads)] += 1
        assert loads.max() <= math.ceil(1.25 * number / N_REPLICAS)


def test_warm_replicas_first_is_the_clusters_rule() -> None:
    """Given the same order of replicas, the simulated policy chooses what `runtime.cluster.affinity` chooses."""
    names = [f"replica {number}" for number in range(6)]

    def weights(key: int) -> NDArray[np.uint64]:
        found = np.zeros(len(names), dtype=np.uint64)
        for place, index in enumerate(order(str(key), [ReplicaLoad(name, 0) for name in names])):
            found[index] = len(names) - place
        return found

    policy, known, generator = Warm(weights), Warmth(), random.Random(0)
    loads = np.zeros(len(names), dtype=np.int64)
    n_spilled = 0
    for _ in range(3000):
        if generator.random() < 0.48 and loads.any():
            loads[generator.choice(np.flatnonzero(loads).tolist())] -= 1
            continue
        key = min(int(generator.paretovariate(0.7)), 60)
        replicas = [
            ReplicaLoad(name, int(load), is_warm=known.is_warm(name, str(key)), n_parallel=N_PARALLEL)
            for name, load in zip(names, loads, strict=True)
        ]
        best = order(str(key), replicas)[0]
        known.note(names[best], str(key), N_LANES)
        assert policy.choose(key, loads) == best
        loads[best] += 1
        n_spilled += best != int(np.argmax(weights(key)))
    assert n_spilled > 100


def test_a_new_replica_takes_keys_and_moves_no_other() -> None:
    """About a tenth of 2,000 adapters moves to a tenth replica, and none between the earlier nine."""
    before, after = Consistent(rendezvous(9)), Consistent(rendezvous(10))
    pairs = [
        (before.choose(key, np.zeros(9, np.int64)), after.choose(key, np.zeros(10, np.int64))) for key in range(2000)
    ]
    moved = [new for old, new in pairs if old != new]
    assert set(moved) == {9}
    assert 150 <= len(moved) <= 250


def test_the_best_placement_by_hand() -> None:
    """Two replicas of eight lanes hold half of 32 equally popular adapters; a hot adapter takes a lane on each."""
    assert Workload(32, 0.0, 1, (1, 1), (1, 1)).best_lane_share(2) == pytest.approx(0.5)
    steep = Workload(32, 3.0, 1, (1, 1), (1, 1))  # the first has 83 % of the requests: more than one replica does
    assert steep.best_lane_share(2) == pytest.approx(steep.shares[:15].sum())


def test_the_command_gives_the_same_table_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Table and picture depend on the seed alone; another seed gives another table."""
    steps = {f"step_s_{number}": FIGURES.step_s[number] for number in (1, 2, 4, 8)}
    others = {
        "model": "invented",
        "measured_on": "nothing",
        "prompt_token_s": 0.01,
        "seen_prefix_s": 0.02,
        "fill_s": 0.1,
    }
    (tmp_path / "figures.json").write_text(json.dumps(steps | others))
    assert read_figures(tmp_path / "figures.json").step_s == pytest.approx(FIGURES.step_s)
    small = ["--replicas", "4", "--adapters", "100", "--requests", "300", "--loads", "0.3", "0.6"]
    tables, pictures = [], []
    for seed in ("0", "0", "1"):
        picture = tmp_path / "routing.svg"
        arguments = [*small, "--seed", seed, "--figures", str(tmp_path / "figures.json"), "--svg", str(picture)]
        assert main(arguments) == 0
        tables.append(capsys.readouterr().out.partition("\n\n")[2])
        pictures.append(picture.read_text())
    assert tables[0] == tables[1] != tables[2]
    assert pictures[0] == pictures[1] != pictures[2]
    assert len(tables[0].splitlines()) == 2 + 2 * 6
    drawn = ElementTree.fromstring(pictures[0])  # noqa: S314 - our own
    assert len(drawn.findall("{http://www.w3.org/2000/svg}polyline")) == 2 * 6
