"""Adapters in lanes: every token of a batch under its own blend.

Lanes are filled by a thread of their own while the engine goes on: reading and packing weights runs without Python's
lock, and the lanes it writes are used by no batch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from convert.gguf.header import GgufHeader
from runtime.engine.adapters.lanes import Fill, Lanes
from runtime.engine.adapters.pins import LanePins
from runtime.errors import GemlaneError, IncompatibleAdapter, InvalidAdapter, OutOfMemory
from runtime.generation import Blend
from runtime.llama.context import Chunk
from runtime.llama.lanes.bank import BankShape
from runtime.llama.lanes.context import LanedContext
from runtime.llama.lanes.weights import AdapterFile, invocation_of, lane_parts
from runtime.messages import LaneStats

_LOG = logging.getLogger("gemlane.engine")


class MixedAdapters:
    """Owns the adapters' files, and fills the lanes that the policy gives to blends."""

    mode = "mixed"

    def __init__(
        self, laned: LanedContext, bank_shape: BankShape, base: GgufHeader, on_filled: Callable[[], None]
    ) -> None:
        """Start without any adapter.

        Args:
            laned: the context and its bank; owned from now on.
            bank_shape: the shape of its bank.
            base: the base model's header, which adapters have to fit.
            on_filled: called from another thread when a lane is ready, so that a waiting engine wakes up.
        """
        self._laned = laned
        self._bank_shape = bank_shape
        self._base = base
        self._on_filled = on_filled
        self._files: dict[str, AdapterFile] = {}
        self._retired: list[AdapterFile] = []
        self._filler = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lane-filler")
        self._filling: dict[Fill, Future[None]] = {}
        self.n_lanes = bank_shape.n_lanes
        """Blends that can run at once."""
        self.places = Lanes(bank_shape.n_lanes)
        self._pins = LanePins(self.places)

    def add(self, digest: str, path: Path) -> None:
        """Open and check an adapter's file; for a known one it takes the place of the file that was opened before.

        Raises:
            InvalidAdapter: the file breaks a rule.
            IncompatibleAdapter: its rank is higher than a lane's.
        """
        file = AdapterFile(path, self._base, digest)
        if file.rank > self._bank_shape.rank:
            file.close()
            raise IncompatibleAdapter(
                f"adapter {path.name} has rank {file.rank}, but lanes have room for {self._bank_shape.rank}; "
                f"start with --max-lora-rank {-(-file.rank // 32) * 32}"
            )
        if digest in self._files:
            self._retired.append(self._files[digest])
        self._files[digest] = file
        self._close_retired()

    def check(self, blend: Blend) -> tuple[int, ...]:
        """The token sequence that invokes a blend, empty if it always applies; refuse what fits into no lane.

        Raises:
            IncompatibleAdapter: the ranks add up to more than a lane's, or the members are invoked differently.
        """
        files = [self._files[member.digest] for member in blend.members]
        rank = sum(file.rank for file in files)
        if rank > self._bank_shape.rank:
            raise IncompatibleAdapter(
                f"the adapters' ranks add up to {rank}, but a lane has room for {self._bank_shape.rank}; "
                f"start with --max-lora-rank {-(-rank // 32) * 32}, or ask for fewer adapters"
            )
        return invocation_of(files)

    def pin(self, digest: str, *, is_pinned: bool) -> None:
        """Keep a lane for an adapter as soon as one is idle, or let its lane go."""
        (self._pins.pin if is_pinned else self._pins.unpin)(digest)

    def remove(self, digest: str) -> None:
        """Close an adapter that no sequence uses, and empty its lanes."""
        self._pins.unpin(digest)
        self._retired.append(self._files.pop(digest))
        for blend in self.places.resident:
            self._forget_if_gone(blend)
        self._close_retired()

    def _forget_if_gone(self, blend: Blend) -> None:
        if any(member.digest not in self._files for member in blend.members):
            self.places.forget(blend)

    def _close_retired(self) -> None:
        """Close removed files if no fill is reading them."""
        if not self._filling:
            for file in self._retired:
                file.close()
            self._retired.clear()

    def prepare(self) -> list[tuple[Blend, GemlaneError]]:
        """Start the fills that the policy asks for and note completed ones; return failed blends with their errors."""
        self._pins.take_lanes()
        for fill in self.places.take_fills():
            members = [(self._files[member.digest], member.scale) for member in fill.blend.members]
            self._filling[fill] = self._filler.submit(self._fill, fill.lane_id, members)
            self._filling[fill].add_done_callback(lambda _: self._on_filled())
        done = [fill for fill, future in self._filling.items() if future.done()]
        failed = []
        for fill in done:
            self.places.filled(fill.lane_id)
            self._forget_if_gone(fill.blend)
            if (cause := self._filling.pop(fill).exception()) is not None:
                error = _error_of(cause)
                _LOG.error("lane %d could not be filled: %s", fill.lane_id, error)
                self._pins.failed(fill.blend)
                failed.append((fill.blend, error))
        self._close_retired()
        return failed

    @property
    def is_preparing(self) -> bool:
        """Whether a lane is being filled; ``on_filled`` is called when it is."""
        return bool(self._filling)

    @property
    def lane_stats(self) -> LaneStats:
        """The lanes by state."""
        return self.places.stats

    def forget(self, blend: Blend) -> None:
        """Empty the lane of a blend whose fill failed."""
        self.places.forget(blend)

    def _fill(self, lane_id: int, members: list[tuple[AdapterFile, float]]) -> None:
        """Write a blend's weights into a lane; its files hold what their digests say before and after they are read.

        Raises:
            InvalidAdapter: a file was overwritten since it was added.
        """
        shape = self._bank_shape
        for file, _ in members:
            file.verify()
        self._laned.bank.fill(lane_id, lane_parts(members, self._laned.shapes, shape.rank, shape.lane_type))
        for file, _ in members:
            file.verify()

    def decode(self, chunks: Sequence[tuple[Chunk, Blend]]) -> list[int]:
        """Run a batch, each chunk in its blend's lane; return the row of each chunk's logits, or -1.

        Raises:
            DecodeError: llama.cpp refused or failed the batch.
        """
        lanes = [self.places.lane_of(blend) for _, blend in chunks]
        return self._laned.decode([chunk for chunk, _ in chunks], lanes)

    def close(self) -> None:
        """Wait for the fill in progress; free the context and the lanes, and close the files."""
        self._filler.shutdown(cancel_futures=True)
        self._laned.free()
        for file in (*self._files.values(), *self._retired):
            file.close()


def _error_of(cause: BaseException) -> GemlaneError:
    """What clients see of a fill that failed."""
    if isinstance(cause, MemoryError):
        return OutOfMemory("there is not enough memory to read this adapter's weights; try again later")
    return cause if isinstance(cause, GemlaneError) else InvalidAdapter(str(cause))
