"""The router that affinity is compared with: the replica with the fewest requests, whatever they ask for."""

from __future__ import annotations

from ray.serve.request_router import PendingRequest, RunningReplica

from runtime.cluster.router import AffinityRouter


class LeastLoadedRouter(AffinityRouter):
    """Sends a request to the replica that it names, else to the one with the shortest queue."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """All replicas as one rank, of which Ray Serve takes the least loaded."""
        if pending_request is not None and pending_request.kwargs.get("to"):
            return await super().choose_replicas(candidate_replicas, pending_request)
        return [candidate_replicas]
