"""The seam between the engine and the two ways to run a batch under its adapters."""

from __future__ import annotations

from collections.abc import Sequence as Row
from pathlib import Path
from typing import Protocol

from runtime.engine.scheduler import Places
from runtime.errors import GemlaneError
from runtime.generation import Blend
from runtime.llama.context import Chunk
from runtime.messages import LaneStats


class Adapters(Protocol):
    """How a batch runs under its adapters: mixed in lanes, or grouped."""

    @property
    def mode(self) -> str:
        """``mixed`` or ``grouped``."""

    @property
    def places(self) -> Places:
        """The policy that says which blends may share a batch."""

    @property
    def is_preparing(self) -> bool:
        """Whether a blend is being prepared; the engine is woken when it is ready."""

    @property
    def lane_stats(self) -> LaneStats:
        """The lanes by state; all zero without lanes."""

    def add(self, digest: str, path: Path) -> None:
        """Open and check an adapter; raises an AdapterError if it cannot be used."""

    def check(self, blend: Blend) -> tuple[int, ...]:
        """The token sequence that invokes a blend of known adapters, empty if it always applies.

        Raises:
            AdapterError: its adapters cannot be used together.
        """

    def prepare(self) -> list[tuple[Blend, GemlaneError]]:
        """Prepare blends that have taken a place; return the blends that cannot be prepared, with their errors."""

    def forget(self, blend: Blend) -> None:
        """Drop what was prepared for a blend that no sequence uses."""

    def pin(self, digest: str, *, is_pinned: bool) -> None:
        """Keep the weights of an adapter where batches find them, or not any more."""

    def remove(self, digest: str) -> None:
        """Close an adapter that no sequence uses."""

    def decode(self, chunks: Row[tuple[Chunk, Blend]]) -> list[int]:
        """Run a batch; return the row of each chunk's logits, or -1."""

    def close(self) -> None:
        """Free the context and all other native memory."""
