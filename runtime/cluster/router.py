"""Ray Serve's request router that asks `runtime.cluster.affinity`. Ray runs it where the requests are made."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from runtime.cluster.affinity import ReplicaLoad, Warmth, key_of, order
from runtime.generation import GenerationRequest


class AffinityRouter(RequestRouter):  # type: ignore[misc]
    """Sends a request to the replica that it names by the keyword ``to``, else where its blend is warm."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._n_requests: Counter[ReplicaID] = Counter()
        self._n_chosen: Counter[ReplicaID] = Counter()
        """Requests that a replica was chosen for and that were not sent yet: others may be routed before they are."""
        self._warmth = Warmth()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Each replica as a rank of its own, the best first."""
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True
        if wanted := pending_request.kwargs.get("to"):
            named = [replica for replica in candidate_replicas if replica.replica_id.unique_id == wanted]
            return [named or candidate_replicas]  # any other replica answers that it is not the one
        request = _request_of(pending_request)
        if request is None:
            return [candidate_replicas]
        key = key_of(request)
        loads = [self._load_of(replica, key) for replica in candidate_replicas]
        ranked = [candidate_replicas[index] for index in order(key, loads)]
        if ranked:  # noted now, so that the next request follows before this one is sent
            n_lanes = int(ranked[0].routing_stats.get("n_lanes", 1))
            self._warmth.note(ranked[0].replica_id.unique_id, key, n_lanes)
            self._n_chosen[ranked[0].replica_id] += 1
        return [[replica] for replica in ranked]

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Forget the replicas that are gone, and choices whose requests were never sent."""
        super().update_replicas(replicas)
        self._n_chosen.clear()
        self._warmth.keep([replica.replica_id.unique_id for replica in replicas])

    def on_send_request(self, replica_id: ReplicaID) -> None:
        """Count one more request of the replica."""
        super().on_send_request(replica_id)
        self._n_requests[replica_id] += 1
        if self._n_chosen[replica_id]:
            self._n_chosen[replica_id] -= 1

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Count one less."""
        super().on_request_completed(replica_id, internal_request_id)
        self._n_requests[replica_id] -= 1
        if self._n_requests[replica_id] <= 0:
            del self._n_requests[replica_id]

    def _load_of(self, replica: RunningReplica, key: str) -> ReplicaLoad:
        """The replica by its last statistics; before the first ones it has none, and its engine is still loading."""
        stats = replica.routing_stats
        return ReplicaLoad(
            name=str(stats.get("rank", replica.replica_id.unique_id)),
            n_requests=self._n_requests[replica.replica_id] + self._n_chosen[replica.replica_id],
            is_serving=bool(stats.get("is_serving", False)),
            is_warm=self._warmth.is_warm(replica.replica_id.unique_id, key),
            n_parallel=int(stats.get("n_parallel", 1)),
        )


def _request_of(pending: PendingRequest) -> GenerationRequest | None:
    """The request for an answer; other calls have none."""
    return next((one for one in pending.args if isinstance(one, GenerationRequest)), None)
