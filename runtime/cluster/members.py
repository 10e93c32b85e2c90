"""Which replicas there are and what they last said. Pure: the caller gives reports and the time."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from runtime.cluster.totals import total
from runtime.cluster.values import Report
from runtime.engines.protocol import Replica
from runtime.engines.states import EngineState, EngineStatus
from runtime.messages import Ready, Stats

log = logging.getLogger(__name__)

_PATIENCE_S: Final = 60.0
"""How long the first start waits for more replicas once one is ready."""


@dataclass(slots=True)
class _Member:
    report: Report
    adapters: dict[str, Path] = field(default_factory=dict)
    """Digest -> file of the adapters that it has taken."""


class Members:
    """The replicas that answered last time. Owned by one event loop."""

    def __init__(self, n_wanted: int) -> None:
        self._n_wanted = n_wanted
        self._members: dict[str, _Member] = {}
        self._has_served = self._is_stopped = False
        self._n_lost = self._n_lost_restarts = 0
        self._served_since: float | None = None
        self._now = 0.0
        self._lost_head = ""
        self._failures: set[str] = set()

    @property
    def ready_ids(self) -> list[str]:
        """Those whose engine is ready."""
        return [name for name, member in self._members.items() if member.report.replica.ready is not None]

    @property
    def ready(self) -> Ready | None:
        """What the first of them has loaded."""
        return next((replica.ready for replica in self.replicas if replica.ready is not None), None)

    @property
    def stats(self) -> Stats | None:
        """Their loads added up."""
        return total([replica.stats for replica in self.replicas if replica.stats is not None])

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """Sorted by rank."""
        replicas = (member.report.replica for member in self._members.values())
        return tuple(sorted(replicas, key=lambda replica: int(replica.name)))

    @property
    def failure(self) -> str:
        """Why a replica could not start; empty if none failed, or another one is ready."""
        if self.ready_ids:
            return ""
        return next((member.report.failure for member in self._members.values() if member.report.failure), "")

    @property
    def is_complete(self) -> bool:
        """Whether as many replicas are ready as there should be, or the others take long."""
        is_late = self._served_since is not None and self._now - self._served_since > _PATIENCE_S
        return len(self.ready_ids) >= self._n_wanted or is_late

    @property
    def n_restarts(self) -> int:
        """Engines that were started again, and replicas that were lost."""
        return self._n_lost + self._n_lost_restarts + sum(replica.n_restarts for replica in self.replicas)

    @property
    def status(self) -> EngineStatus:
        """All replicas as one engine: it serves as long as one of them does."""
        statuses = [replica.status for replica in self.replicas]
        serving = [status for status in statuses if status.is_serving]
        reason = ""
        if self._is_stopped:
            state, reason = EngineState.STOPPED, "the server is shutting down"
        elif self._lost_head:
            state, reason = EngineState.FAILED, f"the head of the Ray cluster at {self._lost_head} does not answer"
        elif serving:
            state = EngineState.READY
            if len(serving) < self._n_wanted:
                reason = f"{len(serving)} of {self._n_wanted} replicas answer"
        else:
            state = EngineState.RESTARTING if self._has_served else EngineState.STARTING
            reason = next((status.reason for status in statuses if status.reason), "")
        return EngineStatus(
            state,
            reason,
            n_deaths=self._n_lost + sum(status.n_deaths for status in statuses),
            n_fallbacks=sum(status.n_fallbacks for status in statuses),
            n_starts=self._n_lost + sum(status.n_starts for status in statuses),
            last_start_s=max((status.last_start_s for status in statuses), default=0.0),
        )

    @property
    def is_head_lost(self) -> bool:
        """Whether the cluster's head does not answer."""
        return bool(self._lost_head)

    def stop(self) -> None:
        """The server ends."""
        self._is_stopped = True

    def note_head(self, address: str, *, is_lost: bool) -> None:
        """Whether the cluster's head answers."""
        if is_lost and not self._lost_head:
            log.error(
                "the head of the Ray cluster at %s does not answer; no request is answered until it does", address
            )
        elif self._lost_head and not is_lost:
            log.info("the head of the Ray cluster at %s answers again", address)
        self._lost_head = address if is_lost else ""

    def take(self, reports: Sequence[Report], now: float) -> bool:
        """Note all replicas that there are; whether one of them became ready that was not.

        Args:
            reports: one of each replica.
            now: seconds of a monotonic clock.
        """
        before = set(self.ready_ids)
        self._now = now
        self._drop({report.replica_id for report in reports})
        for report in reports:
            member = self._members.setdefault(report.replica_id, _Member(report))
            member.report = report
            if report.failure and report.failure not in self._failures:
                self._failures.add(report.failure)
                log.error("replica %s cannot start: %s", _place(report.replica), report.failure)
        joined = [self._members[name].report.replica for name in self.ready_ids if name not in before]
        if joined:
            self._has_served = True
            self._served_since = self._served_since or now
        for replica in joined:
            log.info("replica %s is ready", _place(replica))
        return bool(joined)

    def _drop(self, present: set[str]) -> None:
        for replica_id in set(self._members) - present:
            lost = self._members.pop(replica_id).report.replica
            self._n_lost += 1
            self._n_lost_restarts += lost.n_restarts
            log.warning("replica %s is gone", _place(lost))

    # Adapters

    def has_adapter(self, replica_id: str, digest: str, path: Path) -> bool:
        """Whether a replica took that file of the adapter."""
        member = self._members.get(replica_id)
        return member is not None and member.adapters.get(digest) == path

    def note_adapter(self, replica_id: str, digest: str, path: Path) -> None:
        """A replica took an adapter."""
        if replica_id in self._members:
            self._members[replica_id].adapters[digest] = path

    def forget_adapter(self, digest: str) -> None:
        """An adapter is being removed everywhere."""
        for member in self._members.values():
            member.adapters.pop(digest, None)


def _place(replica: Replica) -> str:
    """A replica and its machine."""
    return f"{replica.name} on {replica.node}"
