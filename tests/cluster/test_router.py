"""The order in which Ray Serve's router is given replicas, without any Ray."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID

from runtime.cluster.router import AffinityRouter
from runtime.generation import Blend, BlendMember, GenerationRequest, Prompt, Sampling, Segment

DEPLOYMENT = DeploymentID("engine", "gemlane")


def replica(rank: int) -> Any:
    """A replica that serves, as the router knows it from its statistics."""
    stats = {"rank": rank, "is_serving": True, "n_parallel": 8, "n_lanes": 8}
    return SimpleNamespace(replica_id=ReplicaID(f"id-{rank}", DEPLOYMENT), routing_stats=stats)


def pending(digest: str, **named: str) -> Any:
    """A request under one adapter that Ray Serve wants to send."""
    prompt = Prompt((Segment("hello", has_control_tokens=False),))
    request = GenerationRequest("r", prompt, 8, Sampling(), Blend((BlendMember(digest),)))
    return SimpleNamespace(args=[request], kwargs=named, routing_context=SimpleNamespace(should_backoff=False))


class Routes:
    """A router over two replicas."""

    def __init__(self) -> None:
        self.router = AffinityRouter(DEPLOYMENT, DeploymentHandleSource.UNKNOWN)
        self.replicas = [replica(0), replica(1)]

    async def choose(self, digest: str, **named: str) -> list[int]:
        """Ranks of the replicas, the best first."""
        chosen = await self.router.choose_replicas(self.replicas, pending(digest, **named))
        return [one.routing_stats["rank"] for rank in chosen for one in rank]


async def test_requests_that_are_routed_together_see_each_other() -> None:
    """Twelve adapters prefer one idle replica; routed before any of them is sent, six go to the other."""
    digests = [f"{number:064x}" for number in range(48)]
    alike = [digest for digest in digests if await Routes().choose(digest) == [0, 1]][:12]
    routes = Routes()
    firsts = [(await routes.choose(digest))[0] for digest in alike]
    assert sorted(firsts) == [0] * 6 + [1] * 6


async def test_a_blend_stays_where_it_was_sent_while_there_is_room() -> None:
    """The second request follows the first, and each end frees its place."""
    routes = Routes()
    (home, _) = await routes.choose("a" * 64)
    place = routes.replicas[home].replica_id
    for _ in range(20):
        routes.router.on_send_request(place)
        assert await routes.choose("a" * 64) == [home, 1 - home]
        routes.router.on_request_completed(place, "r")


async def test_a_full_replica_is_not_the_first() -> None:
    """A warm replica with as many requests as it decodes at once comes second."""
    routes = Routes()
    (home, _) = await routes.choose("a" * 64)
    for _ in range(9):
        routes.router.on_send_request(routes.replicas[home].replica_id)
    assert await routes.choose("a" * 64) == [1 - home, home]


async def test_a_replica_that_is_named_is_the_only_one() -> None:
    """Offers of adapters go to the replica that they name."""
    assert await Routes().choose("a" * 64, to="id-1") == [1]
