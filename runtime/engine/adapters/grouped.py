"""Adapters as llama.cpp applies them itself: one set for a whole batch, changed between batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from convert.gguf.header import GgufHeader
from runtime.engine.adapters.turns import Turns
from runtime.errors import GemlaneError, InvalidAdapter
from runtime.generation import BASE, Blend
from runtime.llama.adapter import NativeAdapter
from runtime.llama.context import Chunk, Context
from runtime.llama.lanes.weights import AdapterFile, invocation_of
from runtime.llama.model import Model
from runtime.messages import LaneStats


class GroupedAdapters:
    """Owns the adapters' files. llama.cpp holds the adapters used last, and applies one blend to a whole batch."""

    mode = "grouped"

    def __init__(self, model: Model, context: Context, base: GgufHeader, n_loaded: int) -> None:
        """Start without any adapter.

        Args:
            model: the base model.
            context: owned from now on.
            base: the base model's header, which adapters have to fit.
            n_loaded: how many adapters llama.cpp holds at once, unless a blend has more.
        """
        self._model = model
        self._context = context
        self._base = base
        self._n_loaded = n_loaded
        self._files: dict[str, AdapterFile] = {}
        self._loaded: dict[str, NativeAdapter] = {}
        """Adapters that llama.cpp holds, in the order of their last use."""
        self._current = BASE
        self.places = Turns()

    def add(self, digest: str, path: Path) -> None:
        """Open and check an adapter's file; for a known one it takes the place of the file that was opened before.

        Raises:
            InvalidAdapter: the file breaks a rule.
        """
        file = AdapterFile(path, self._base, digest)
        if digest in self._files:
            self._files[digest].close()
        self._files[digest] = file

    @property
    def lane_stats(self) -> LaneStats:
        """Zeros: there are no lanes."""
        return LaneStats()

    def check(self, blend: Blend) -> tuple[int, ...]:
        """The token sequence that invokes a blend, empty if it always applies.

        Raises:
            IncompatibleAdapter: the members are invoked differently.
        """
        return invocation_of(self._files[member.digest] for member in blend.members)

    def prepare(self) -> list[tuple[Blend, GemlaneError]]:
        """Do nothing: adapters are set batch by batch."""
        return []

    @property
    def is_preparing(self) -> bool:
        """Always False."""
        return False

    def forget(self, blend: Blend) -> None:
        """Do nothing: nothing is prepared for a blend."""

    def pin(self, digest: str, *, is_pinned: bool) -> None:
        """Do nothing: there are no lanes to keep."""

    def remove(self, digest: str) -> None:
        """Close an adapter that no sequence uses."""
        if any(member.digest == digest for member in self._current.members):
            self._set(BASE)
        self._files.pop(digest).close()
        if adapter := self._loaded.pop(digest, None):
            adapter.free()

    def decode(self, chunks: Sequence[tuple[Chunk, Blend]]) -> list[int]:
        """Run a batch whose chunks all have one blend; return the row of each chunk's logits.

        Raises:
            DecodeError: llama.cpp refused or failed the batch.
            InvalidAdapter: an adapter's file was overwritten since it was added.
        """
        (blend,) = {blend for _, blend in chunks}
        if blend != self._current:
            self._set(blend)
        return self._context.decode([chunk for chunk, _ in chunks])

    def _set(self, blend: Blend) -> None:
        adapters = [(self._load(member.digest), member.scale) for member in blend.members]
        self._context.set_adapters(adapters)
        self._current = blend
        used = {member.digest for member in blend.members}
        for digest in [digest for digest in self._loaded if digest not in used]:
            if len(self._loaded) > max(self._n_loaded, len(used)):
                self._loaded.pop(digest).free()

    def _load(self, digest: str) -> NativeAdapter:
        """The adapter in llama.cpp's memory, as the one used last.

        Raises:
            InvalidAdapter: its file was overwritten since it was added, or llama.cpp refused it.
        """
        adapter = self._loaded.pop(digest, None) or self._read(self._files[digest])
        self._loaded[digest] = adapter
        return adapter

    def _read(self, file: AdapterFile) -> NativeAdapter:
        file.verify()
        adapter = NativeAdapter(self._model, file.open_path)
        try:
            file.verify()
        except InvalidAdapter:
            adapter.free()
            raise
        return adapter

    def close(self) -> None:
        """Free the context and the adapters, and close the files."""
        self._context.free()
        self.release()

    def release(self) -> None:
        """Give the adapters and the files back, once the context has other adapters or is freed."""
        for adapter in self._loaded.values():
            adapter.free()
        for file in self._files.values():
            file.close()
        self._loaded.clear()
        self._files.clear()
