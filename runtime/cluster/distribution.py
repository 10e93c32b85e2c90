"""Brings adapters to replicas, and takes an adapter away once no request uses it."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Final

from runtime.cluster.members import Members
from runtime.cluster.values import Unreadable
from runtime.errors import AdapterError, EngineUnavailable, GemlaneError, StorageError
from runtime.generation import Blend

log = logging.getLogger(__name__)

Call = Callable[..., Coroutine[Any, Any, Any]]
"""Calls a method of a replica; a lost replica is an ``EngineDied`` as its answer."""
_MAX_OFFERS: Final = 32
"""Offers on their way at once."""
_LOADING: Final = "the model is being loaded; try again in a moment"


class Distribution:
    """The adapters of all replicas. One event loop owns it."""

    def __init__(self, members: Members, call: Call, put: Callable[[bytes], Any]) -> None:
        """Start without any adapter.

        Args:
            members: the replicas.
            call: calls a method of a replica.
            put: gives a reference to bytes, which it copies where every machine can fetch them.
        """
        self._members = members
        self._call = call
        self._put = put
        self._paths: dict[str, Path] = {}
        """Digest -> file of every adapter that requests may use."""
        self._users: Counter[str] = Counter()
        """Digest -> requests in flight that use the adapter."""
        self._unused: dict[str, asyncio.Event] = {}
        """Adapters that are to be removed; each event is set once no request uses the adapter, or it is added again."""
        self._offers = asyncio.Semaphore(_MAX_OFFERS)
        self._copying = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()

    def paths_of(self, blend: Blend) -> dict[str, str]:
        """Digest -> file of the adapters of a blend that are not removed."""
        digests = (member.digest for member in blend.members)
        return {digest: str(self._paths[digest]) for digest in digests if digest in self._paths}

    def begin_use(self, blend: Blend) -> None:
        """A request under the blend is in flight; its adapters are kept until it ends."""
        self._users.update(member.digest for member in blend.members)

    def end_use(self, blend: Blend) -> None:
        """A request under the blend has ended."""
        for member in blend.members:
            self._users[member.digest] -= 1
            if not self._users[member.digest] and member.digest in self._unused:
                self._unused[member.digest].set()

    def add(self, digest: str, path: Path) -> Awaitable[None]:
        """See `Engine.add_adapter`; refused if any replica refuses it."""
        self._paths[digest] = path
        if unused := self._unused.pop(digest, None):
            unused.set()
        return asyncio.shield(self._run(self._offer(digest, path)))

    def pin(self, digest: str, *, is_pinned: bool) -> None:
        """See `Engine.pin_adapter`."""
        for replica_id in self._members.ready_ids:
            self._run(self._call("pin_adapter", digest, is_pinned=is_pinned, to=replica_id))

    def remove(self, digest: str) -> Awaitable[None]:
        """See `Engine.remove_adapter`."""
        unused = self._unused.setdefault(digest, asyncio.Event())
        if not self._users[digest]:
            unused.set()
        return asyncio.shield(self._run(self._withdraw(digest, unused)))

    def close(self) -> None:
        """Stop waiting for answers."""
        for task in self._tasks:
            task.cancel()

    async def _offer(self, digest: str, path: Path) -> None:
        """Offer an adapter to every replica that does not have it."""
        ready_ids = self._members.ready_ids
        if not ready_ids:
            raise EngineUnavailable(_LOADING)
        answers = await asyncio.gather(*(self._offer_to(replica_id, digest, path) for replica_id in ready_ids))
        refusals = [answer for answer in answers if answer is not None]
        for refusal in refusals:
            if isinstance(refusal, AdapterError):
                raise refusal
            log.warning("an adapter did not reach a replica: %s", refusal)
        if len(refusals) == len(answers):
            raise refusals[0]

    async def _offer_to(self, replica_id: str, digest: str, path: Path) -> GemlaneError | None:
        """Offer an adapter to one replica; what it was refused with."""
        if self._members.has_adapter(replica_id, digest, path):
            return None
        async with self._offers:
            answer = await self._call("add_adapter", digest, str(path), to=replica_id)
        if isinstance(answer, Unreadable):
            answer = await self.copy(replica_id, digest, path)
        if answer is None:
            self._members.note_adapter(replica_id, digest, path)
        assert answer is None or isinstance(answer, GemlaneError)
        return answer

    async def copy(self, replica_id: str, digest: str, path: Path) -> GemlaneError | None:
        """Send an adapter's bytes by Ray's object store, one adapter at a time."""
        async with self._copying:
            try:
                content = await asyncio.to_thread(lambda: self._put(path.read_bytes()))
            except OSError as error:
                return StorageError(f"an adapter's file cannot be read: {error.strerror}")
            answer = await self._call("add_adapter", digest, str(path), [content], to=replica_id)
        assert answer is None or isinstance(answer, GemlaneError)
        return answer

    async def _withdraw(self, digest: str, unused: asyncio.Event) -> None:
        """Wait until no request uses an adapter, and let every replica forget it."""
        await unused.wait()
        if self._unused.get(digest) is not unused:
            return  # it was added again
        del self._unused[digest], self._users[digest]
        self._paths.pop(digest, None)
        self._members.forget_adapter(digest)
        ids = self._members.ready_ids
        await asyncio.gather(*(self._call("remove_adapter", digest, to=replica_id) for replica_id in ids))

    def _run(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
