"""Adapters as llama.cpp applies them itself: one set for a whole batch, changed between batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from convert.gguf_header import GgufHeader
from runtime.engine.doorway import check_adapter_file
from runtime.engine.turns import Turns
from runtime.errors import AdapterError
from runtime.generation import BASE, Blend
from runtime.llama.adapter import Adapter
from runtime.llama.context import Chunk, Context
from runtime.llama.model import Model


class GroupedAdapters:
    """Loads adapters into llama.cpp and sets those of a batch before it runs."""

    mode = "grouped"

    def __init__(self, model: Model, context: Context, base: GgufHeader) -> None:
        self._base = base
        self._model = model
        self._context = context
        self._loaded: dict[str, Adapter] = {}
        self._current = BASE
        self.places = Turns()

    def add(self, digest: str, path: Path) -> None:
        """Load an adapter.

        Raises:
            InvalidAdapter: the file breaks a rule, or llama.cpp refused it.
        """
        if digest not in self._loaded:
            check_adapter_file(path, self._base)
            self._loaded[digest] = Adapter(self._model, path)

    def check(self, blend: Blend) -> None:
        """Any set of adapters will do."""

    def prepare(self) -> list[tuple[Blend, AdapterError]]:
        """Nothing is prepared: adapters are set batch by batch."""
        return []

    def forget(self, blend: Blend) -> None:
        """Nothing is kept for a blend."""

    def remove(self, digest: str) -> None:
        """Free an adapter that no sequence uses any more."""
        if any(member.digest == digest for member in self._current.members):
            self._set(BASE)
        self._loaded.pop(digest).free()

    def decode(self, chunks: Sequence[tuple[Chunk, Blend]]) -> list[int]:
        """Run a batch whose chunks all have one blend; the row of each chunk's logits.

        Raises:
            DecodeError: llama.cpp refused or failed the batch.
        """
        (blend,) = {blend for _, blend in chunks}
        self._set(blend)
        return self._context.decode([chunk for chunk, _ in chunks])

    def _set(self, blend: Blend) -> None:
        if blend != self._current:
            self._context.set_adapters([(self._loaded[one.digest], one.scale) for one in blend.members])
            self._current = blend

    def close(self) -> None:
        """Give the context and the adapters back."""
        self._context.free()
        for adapter in self._loaded.values():
            adapter.free()
