"""One replica: a Ray Serve replica around the ordinary engine process, with lanes and prefixes of its own."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import importlib.metadata
import logging
import os
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import platformdirs
import ray
from ray import serve

from convert.errors import ConvertError
from convert.files import whole_file
from runtime.cluster.values import Item, LogLine, ReplicaPlan, Report, Unreadable
from runtime.config import EngineSettings
from runtime.engines.supervisor import ChildEngine
from runtime.errors import EngineDied, EngineUnavailable, GemlaneError, ModelLoadError, StorageError
from runtime.generation import GenerationRequest
from runtime.messages import Finished

log = logging.getLogger(__name__)

LEASE_S: Final = 60.0
"""How long a replica outlives the last question of the web process."""
_MAX_LOG_LINES: Final = 200
_MESSAGE_S: Final = 0.001
"""Time between two messages of all replicas together. Measured: 0.5 to 1 ms of the web process for each message."""


class EngineReplica:
    """What Ray Serve deploys. Belongs to the event loop that Ray Serve runs it in."""

    def __init__(self, plan: ReplicaPlan) -> None:
        context = serve.get_replica_context()
        self._id, self._app = context.replica_id.unique_id, context.app_name
        self._n_replicas = context.world_size
        self._log = _Lines(plan.log_level)
        self._state_dir = plan.state_dir or str(platformdirs.user_state_path("gemlane"))
        node_id = ray.get_runtime_context().get_node_id()
        self._node = next((one["NodeManagerAddress"] for one in ray.nodes() if one["NodeID"] == node_id), "")
        self._is_elsewhere = node_id != plan.node_id
        """Whether files of the web process's machine may be missing or different here."""
        self._loaded = 0.0
        self._failure = _version_fault(plan.version)
        self._settings = _of_its_own(plan.settings)
        self._engine = ChildEngine(
            self._settings, max_in_flight=plan.max_in_flight, state_dir=self._state_dir, on_loading=self._note_loading
        )
        self._engine.on_ready(self._offer_all)
        self._paths: dict[str, str] = {}
        """Digest -> file of every adapter that this replica has been offered."""
        self._pinned: set[str] = set()
        self._asked = asyncio.Event()
        self._tasks = {asyncio.create_task(self._start()), asyncio.create_task(self._keep_lease())}

    # Answers

    async def generate(
        self, request: GenerationRequest, paths: Mapping[str, str], *, can_restart: bool
    ) -> AsyncIterator[tuple[Item, ...]]:
        """The events of one answer, those that came since the last message together; an error is the last one.

        Each message costs the web process a millisecond of its processor, whatever it holds. So messages wait for more
        events as soon as all streams together would send more than one in `_MESSAGE_S`; the first never waits.

        Args:
            request: what to answer.
            paths: digest -> file of the adapters that the request needs: this replica may have been offered none yet.
            can_restart: as in `Engine.generate`.
        """
        items: asyncio.Queue[Item] = asyncio.Queue()
        answering = asyncio.create_task(self._answer(request, paths, items, can_restart=can_restart))
        try:
            is_over = False
            while not is_over:
                message = [await items.get()]
                while not items.empty():
                    message.append(items.get_nowait())
                is_over = isinstance(message[-1], Finished | GemlaneError | Unreadable)
                yield tuple(message)
                if not is_over:
                    await asyncio.sleep(_MESSAGE_S * self._engine.n_in_flight * self._n_replicas)
        finally:
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)

    async def _answer(
        self, request: GenerationRequest, paths: Mapping[str, str], items: asyncio.Queue[Item], *, can_restart: bool
    ) -> None:
        """Put the events of one answer into a queue; the last item is the end."""
        try:
            for digest, path in paths.items():
                if digest not in self._paths and (unreadable := await self._offer(digest, path)):
                    items.put_nowait(unreadable)
                    return
            async with self._engine.generate(request, can_restart=can_restart) as events:
                async for event in events:
                    items.put_nowait(event)
        except GemlaneError as error:
            items.put_nowait(error)
        except BaseException:
            items.put_nowait(EngineDied("the replica failed"))
            raise

    # Adapters

    async def add_adapter(
        self, digest: str, path: str, content: Sequence[Any] = (), *, to: str
    ) -> Unreadable | GemlaneError | None:
        """Offer an adapter to the engine.

        Args:
            digest: the SHA-256 of its content, in hexadecimal.
            path: the file as the web process knows it.
            content: a reference to the bytes in Ray's object store, if they are needed here.
            to: the replica that is meant.

        Returns:
            None once the engine has taken it, or what it was refused with.
        """
        if to != self._id:
            return EngineDied("the replica is gone")
        try:
            if content:
                path = await asyncio.to_thread(self._keep, digest, content[0])
            return await self._offer(digest, path)
        except GemlaneError as error:
            return error

    async def pin_adapter(self, digest: str, *, is_pinned: bool, to: str) -> None:
        """Keep an adapter's weights in a lane, or not any more."""
        if to == self._id:
            (self._pinned.add if is_pinned else self._pinned.discard)(digest)
            self._engine.pin_adapter(digest, is_pinned=is_pinned)

    async def remove_adapter(self, digest: str, *, to: str) -> None:
        """Forget an adapter; ends once no request of this replica uses it."""
        if to != self._id:
            return
        path = self._paths.pop(digest, None)
        self._pinned.discard(digest)
        await self._engine.remove_adapter(digest)
        if digest not in self._paths and path == str(self._kept(digest)):
            await asyncio.to_thread(self._kept(digest).unlink, missing_ok=True)

    # State

    async def report(self) -> Report:
        """The state now, and what was logged since the last report."""
        self._asked.set()
        (engine,) = self._engine.replicas
        replica = dataclasses.replace(engine, name=str(_rank()), node=self._node)
        return Report(self._id, replica, self._loaded, self._failure, self._log.take())

    async def record_routing_stats(self) -> dict[str, Any]:
        """What the router needs to know; Ray Serve asks for it."""
        return {
            "rank": _rank(),
            "is_serving": self._engine.status.is_serving,
            "n_parallel": self._settings.parallel,
            "n_lanes": self._settings.lanes,
        }

    async def stop(self) -> None:
        """End the engine process; the application is about to be deleted."""
        await self._engine.stop()

    async def check_health(self) -> None:
        """Let Ray Serve replace a replica whose engine could not be started.

        Raises:
            ModelLoadError: it could not.
        """
        if self._failure:
            raise ModelLoadError(self._failure)

    # How

    async def _start(self) -> None:
        if self._failure:
            return
        try:
            await self._engine.start()
        except ModelLoadError as error:
            self._failure = str(error)

    async def _keep_lease(self) -> None:
        """Delete the application when its web process has stopped asking: no other process would delete it."""
        while True:
            self._asked.clear()
            try:
                await asyncio.wait_for(self._asked.wait(), LEASE_S)
            except TimeoutError:
                log.warning("the web process has not asked for %.0f s; this application is deleted", LEASE_S)
                await asyncio.to_thread(serve.delete, self._app)

    def _note_loading(self, fraction: float) -> None:
        self._loaded = fraction

    def _offer_all(self) -> None:
        """The engine became ready and knows no adapter: give it all that were offered, before any request."""
        for digest, path in self._paths.items():
            self._follow(self._engine.add_adapter(digest, Path(path)))
        for digest in self._pinned:
            self._engine.pin_adapter(digest, is_pinned=True)

    def _follow(self, answer: Awaitable[None]) -> None:
        async def settle() -> None:
            try:
                await answer
            except GemlaneError as error:
                log.warning("an adapter is refused after a restart: %s", error)

        task = asyncio.create_task(settle())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _offer(self, digest: str, path: str) -> Unreadable | None:
        """Offer the file if it is here with that content."""
        if self._is_elsewhere and not await asyncio.to_thread(_has_content, path, digest):
            return Unreadable(self._id, digest)
        self._paths[digest] = path
        try:
            await self._engine.add_adapter(digest, Path(path))
        except EngineUnavailable:
            pass  # offered by _offer_all as soon as there is an engine
        except GemlaneError:
            self._paths.pop(digest, None)
            raise
        return None

    def _kept(self, digest: str) -> Path:
        """Where the bytes of an adapter are kept that this machine has no file of."""
        return Path(self._state_dir) / "cluster" / f"{digest}.gguf"

    def _keep(self, digest: str, reference: Any) -> str:
        """Write an adapter's bytes to a file of this machine. In a thread.

        Raises:
            StorageError: they are not the bytes of that digest, or cannot be written.
        """
        content, path = ray.get(reference), self._kept(digest)
        if hashlib.sha256(content).hexdigest() != digest:
            raise StorageError("the bytes of an adapter changed on their way")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as file:
                file.write(content)
        except (OSError, ConvertError) as error:
            raise StorageError(f"an adapter cannot be kept on {os.uname().nodename}: {error}") from error
        return str(path)


class _Lines(logging.Handler):
    """Keeps log records until they are taken."""

    def __init__(self, level: str) -> None:
        super().__init__(level.upper())
        self._lines: deque[LogLine] = deque(maxlen=_MAX_LOG_LINES)
        for name in ("gemlane", "runtime"):
            logger = logging.getLogger(name)
            logger.setLevel(level.upper())
            logger.addHandler(self)
            logger.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one record."""
        self._lines.append(LogLine(record.levelno, record.name, record.getMessage()))

    def take(self) -> tuple[LogLine, ...]:
        """All records since the last call, at most the last two hundred."""
        lines = tuple(self._lines)
        self._lines.clear()
        return lines


def _of_its_own(settings: EngineSettings) -> EngineSettings:
    """The settings with a folder of kept prefixes that no other replica of this machine writes to."""
    if not settings.prefix_dir:
        return settings
    return dataclasses.replace(settings, prefix_dir=str(Path(settings.prefix_dir) / f"replica-{_rank()}"))


def _rank() -> int:
    return int(serve.get_replica_context().rank.rank)


def _has_content(path: str, digest: str) -> bool:
    """Whether the file can be read and has that content."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == digest
    except OSError:
        return False


def _version_fault(wanted: str) -> str:
    """What is wrong if this machine has another gemlane than the web process; empty if it is the same."""
    here = importlib.metadata.version("gemlane")
    machine = os.uname().nodename
    return "" if here == wanted else f"{machine} has gemlane {here}, the server {wanted}; install the same on both"
