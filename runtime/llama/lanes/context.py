"""A context whose batches mix lanes: the template that makes the nodes, the graph that rewrites them, and the bank."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from runtime.errors import DecodeError, ModelLoadError
from runtime.generation import Prompt
from runtime.llama import ggml
from runtime.llama.adapter import NativeAdapter
from runtime.llama.context import Chunk, Context, ContextShape
from runtime.llama.lanes.bank import Bank, BankShape
from runtime.llama.lanes.graph import LaneGraph
from runtime.llama.lanes.nodes import Plan
from runtime.llama.lanes.template import Shapes, write_template
from runtime.llama.lanes.tensor import LayoutError, buffer_type_of, prove_layout
from runtime.llama.model import Model


class LanedContext:
    """Owns a context, its template adapter and its bank. Used by one thread, but for ``bank.fill``."""

    def __init__(self, model: Model, shape: ContextShape, shapes: Shapes, bank_shape: BankShape) -> None:
        """Load the template, find its nodes in the graph, and allocate the bank beside its tensors.

        Args:
            model: the base model.
            shape: of the context.
            shapes: ``(n_in, n_out)`` of every weight that lanes may change.
            bank_shape: of the bank.

        Raises:
            ModelLoadError: lanes are not possible here; the message says why.
        """
        try:
            self._graph = LaneGraph(prove_layout())
        except LayoutError as error:
            raise ModelLoadError(f"this llama.cpp is not the one that lanes were built for: {error}") from error
        self.shapes = dict(shapes)
        self._n_lanes = bank_shape.n_lanes
        with contextlib.ExitStack() as undo:
            self.context = Context(model, shape, self._graph.callback)
            undo.callback(self.context.free)
            self._template = _load_template(model, shapes)
            undo.callback(self._template.free)
            self.bank = Bank(self._find_buffer_types(model), shapes, bank_shape)
            undo.pop_all()
        self._graph.attach(self.bank.weights)

    def _find_buffer_types(self, model: Model) -> Mapping[str, int]:
        """Where the template's tensors are: in the processor's memory, or where a token's run shows them."""
        self.context.set_adapters([(self._template, 1.0)])
        if not model.placement.n_layers:
            return dict.fromkeys(self.shapes, ggml.cpu_buffer_type())
        self.context.decode([Chunk(0, model.tokenize(Prompt(())), 0, wants_logits=True)])
        self.context.remove(0)
        missing = set(self.shapes) - {name for name, pair in self._graph.found.items() if pair.b}
        if missing:
            raise ModelLoadError(f"llama.cpp's graph has no LoRA nodes for {min(missing)}")
        return {name: buffer_type_of(pair.a) for name, pair in self._graph.found.items()}

    def decode(self, chunks: Sequence[Chunk], lanes: Sequence[int]) -> list[int]:
        """Run one batch, each chunk under its own lane; the row of each chunk's logits, or -1.

        Raises:
            DecodeError: llama.cpp refused or failed the batch, or its graph could not be given its lanes.
            ValueError: there is no such lane; ggml checks that only in debug builds.
        """
        if not 0 <= min(lanes) <= max(lanes) <= self._n_lanes:
            raise ValueError(f"lanes {min(lanes)} to {max(lanes)} are not all among 0 to {self._n_lanes}")
        lengths = [len(chunk.tokens) for chunk in chunks]
        of_tokens = np.repeat(np.array(lanes, np.int32), lengths)
        wanted = [lane for chunk, lane in zip(chunks, lanes, strict=True) for _ in range(chunk.n_outputs)]
        used = set(lanes)
        plan = Plan(self.bank.touched_by(used), used.pop() if len(used) == 1 else None, self.bank.rank)
        self.context.synchronize()
        if plan.lane is None and plan.active:
            self.bank.set_ids(of_tokens, np.array(wanted, np.int32))
        self._graph.begin(self.context.handle, plan, len(of_tokens))
        try:
            rows = self.context.decode(chunks)
            self._graph.end()
        except DecodeError:
            # Some nodes may have been rewritten for this batch, others not: let llama.cpp build them again.
            self.use_native([])
            self.use_lanes()
            raise
        return rows

    def use_native(self, adapters: Sequence[tuple[NativeAdapter, float]]) -> None:
        """Leave lanes aside: the coming batches run under llama.cpp's own adapters."""
        self._graph.pause()
        self.context.set_adapters(adapters)

    def use_lanes(self) -> None:
        """Run the coming batches in lanes again."""
        self.context.set_adapters([(self._template, 1.0)])
        self._graph.resume()

    def free(self) -> None:
        """Give the native memory back."""
        self.context.free()
        self._template.free()
        self.bank.free()


def _load_template(model: Model, shapes: Shapes) -> NativeAdapter:
    with tempfile.TemporaryDirectory(prefix="gemlane-") as folder:
        path = Path(folder) / "template.gguf"
        write_template(path, shapes)
        return NativeAdapter(model, path)
