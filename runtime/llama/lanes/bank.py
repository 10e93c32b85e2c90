"""The memory of the lanes: for every weight with LoRA the A and B of all lanes, beside the template's own tensors.

Lane 0 is all zeros: the base model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime.errors import ModelLoadError
from runtime.llama import ggml
from runtime.llama.lanes.nodes import LaneWeight
from runtime.llama.lanes.tensor import buffer_type_of, columns_of, plane_bytes_of, rows_of
from runtime.llama.lanes.weights import LANE_TYPES, LanePart

_F32, _I32 = 0, 26
# The processor's products take rows in groups of four at least.
_ROW_GROUP = 4


@dataclass(frozen=True, slots=True)
class BankShape:
    """How much the bank holds. ``n_lanes`` counts those that blends may sit in; lane 0 comes on top."""

    n_lanes: int
    rank: int
    lane_type: str
    n_batch: int
    has_own_results: bool = False
    """Give products room of their own even where the backend needs no scratch behind them."""


class Bank:
    """Owns the lanes' native memory. Lanes that no running batch uses may be written from any one thread."""

    def __init__(
        self, buffer_types: Mapping[str, int], shapes: Mapping[str, tuple[int, int]], shape: BankShape
    ) -> None:
        """Allocate all lanes; lane 0 is zeroed, the others are when they are first filled.

        Args:
            buffer_types: where each weight's share of the bank has to be.
            shapes: ``(n_in, n_out)`` of each weight.
            shape: how much to hold.

        Raises:
            ModelLoadError: there is not enough memory.
        """
        self._contexts: list[int] = []
        self._buffers: list[int] = []
        self.weights: dict[str, LaneWeight] = {}
        self._ids: list[tuple[int, int]] = []
        self.rank = _ROW_GROUP
        """Rows of A that some lane has ever used."""
        self._touched: dict[int, set[str]] = defaultdict(set)
        self._filled = {0}
        """Lanes that have been written as a whole."""
        by_type: dict[int, list[str]] = defaultdict(list)
        for name, buffer_type in buffer_types.items():
            by_type[buffer_type].append(name)
        for buffer_type, names in by_type.items():
            self._allocate(buffer_type, {name: shapes[name] for name in names}, shape)

    def _allocate(self, buffer_type: int, shapes: Mapping[str, tuple[int, int]], shape: BankShape) -> None:
        """The share of one buffer type, with its own ids and, where the backend wants it, room for results."""
        modules = {name: _module_of(name) for name in shapes}
        n_tensors = 2 * len(shapes) + 2 * len(set(modules.values())) + 16
        context = ggml.new_context(n_tensors)
        if context is None:
            raise ModelLoadError("no memory for the lanes' tensors")
        self._contexts.append(context)
        kind, n_planes = LANE_TYPES[shape.lane_type], shape.n_lanes + 1
        ids = ggml.new_tensor_2d(context, _I32, 1, shape.n_batch), ggml.new_tensor_2d(context, _I32, 1, shape.n_batch)
        stacks = {
            name: (
                ggml.new_tensor_3d(context, kind, n_in, shape.rank, n_planes),
                ggml.new_tensor_3d(context, kind, shape.rank, n_out, n_planes),
            )
            for name, (n_in, n_out) in shapes.items()
        }
        results: dict[str, tuple[int, int]] = {}
        for name, stack in stacks.items():
            if modules[name] not in results:
                results[modules[name]] = self._results(context, buffer_type, stack, shape)
        buffer = ggml.alloc_tensors(context, buffer_type)
        if not buffer:
            raise ModelLoadError(
                f"not enough memory for {shape.n_lanes} lanes of rank {shape.rank}; "
                "start with a smaller --lanes or --max-lora-rank, or with --adapter-batching grouped"
            )
        self._buffers.append(buffer)
        if not ggml.is_host(buffer_type):
            # Kernels of GPUs read a little beyond a lane's last row, and what lies there must be numbers. The memory of
            # the processor is left alone: lanes that no adapter has used take none.
            ggml.clear_buffer(buffer, 0)
        self._ids.append(ids)
        for tensor in {one for pair in results.values() for one in (*pair, *ids) if one}:
            _write_zeros(tensor, 0, ggml.nbytes(tensor))
        for name, (a, b) in stacks.items():
            self.weights[name] = LaneWeight(a, b, ids[0], ids[1], *results[modules[name]])
            self._clear(0, name)

    def _results(self, context: int, buffer_type: int, stack: tuple[int, int], shape: BankShape) -> tuple[int, int]:
        """Memory for the results of ``a`` and ``b`` at the largest batch; 0 where the graph's own is large enough.

        Every layer's weight of one module has the same: a layer's nodes wait for those of the layer before. Modules of
        one layer each have their own, since backends choose the order of nodes that do not wait for each other.

        The graph holds ``a`` of a single row, so ``a`` always needs memory. ``b`` does where the backend keeps scratch
        behind the result of ``MUL_MAT_ID`` (Metal: ggml-metal.cpp, ggml_backend_metal_buffer_type_get_alloc_size).
        """
        # The operands' shapes alone matter; they live in a context that gets no memory.
        operands = ggml.new_context(4)
        if operands is None:
            raise ModelLoadError("no memory for the lanes' tensors")
        self._contexts.append(operands)
        a, b = stack
        ids = ggml.new_tensor_2d(operands, _I32, 1, shape.n_batch)
        x = ggml.new_tensor_3d(operands, _F32, columns_of(a), 1, shape.n_batch)
        result_a = ggml.mul_mat_id(context, a, x, ids)
        probe = ggml.mul_mat_id(operands, b, result_a, ids)
        needs_scratch = ggml.alloc_size(buffer_type, probe) > ggml.nbytes(probe) or shape.has_own_results
        return result_a, ggml.mul_mat_id(context, b, result_a, ids) if needs_scratch else 0

    @property
    def size_bytes(self) -> int:
        """Memory of all lanes."""
        return sum(ggml.buffer_size(buffer) for buffer in self._buffers)

    def fill(self, lane: int, parts: Iterable[LanePart]) -> None:
        """Write a lane; weights that are not among ``parts`` become zero in it."""
        touched = set()
        for part in parts:
            # Noted first: a fill that ends halfway leaves weights that the next one has to clear.
            self._touched[lane].add(part.name)
            n_rows = -(-part.rank // _ROW_GROUP) * _ROW_GROUP
            self.rank = max(self.rank, min(n_rows, rows_of(self.weights[part.name].a)))
            self._write(lane, part)
            touched.add(part.name)
        is_new = lane not in self._filled
        self._filled.add(lane)
        for name in set(self.weights if is_new else self._touched[lane]) - touched:
            self._clear(lane, name)
        self._touched[lane] = touched

    def _clear(self, lane: int, name: str) -> None:
        """Zero a weight's A and B in a lane. A is zeroed too, since new memory may hold NaN."""
        for stack in (self.weights[name].a, self.weights[name].b):
            _write_zeros(stack, lane * plane_bytes_of(stack), plane_bytes_of(stack))

    def _write(self, lane: int, part: LanePart) -> None:
        weight = self.weights[part.name]
        for stack, data in ((weight.a, part.a), (weight.b, part.b)):
            if data.size != plane_bytes_of(stack):
                raise ValueError(f"{part.name}: {data.size} bytes for a lane of {plane_bytes_of(stack)}")
            # Rows of A from the rank on are zero.
            n_used = data.size // rows_of(stack) * part.rank if stack == weight.a else data.size
            ggml.write(stack, data.ctypes.data, lane * data.size, n_used)
            _write_zeros(stack, lane * data.size + n_used, data.size - n_used)

    def read(self, lane: int, name: str) -> LanePart:
        """What a lane holds for a weight."""
        weight = self.weights[name]
        planes = []
        for stack in (weight.a, weight.b):
            plane = np.empty(plane_bytes_of(stack), np.uint8)
            ggml.read(stack, plane.ctypes.data, lane * plane.size, plane.size)
            planes.append(plane)
        return LanePart(name, planes[0], planes[1], self.rank)

    def touched_by(self, lanes: Iterable[int]) -> frozenset[str]:
        """The weights that some of these lanes change."""
        return frozenset().union(*(self._touched[lane] for lane in lanes))

    def set_ids(self, of_tokens: npt.NDArray[np.int32], of_outputs: npt.NDArray[np.int32]) -> None:
        """Say which lane each token of the next batch uses, and each token whose logits are wanted.

        Args:
            of_tokens: int32 ``[n_tokens]``, at most ``n_batch``.
            of_outputs: int32 ``[n_outputs]``, at most ``n_batch``.
        """
        for ids_of_tokens, ids_of_outputs in self._ids:
            ggml.write(ids_of_tokens, of_tokens.ctypes.data, 0, of_tokens.nbytes)
            if of_outputs.size:
                ggml.write(ids_of_outputs, of_outputs.ctypes.data, 0, of_outputs.nbytes)

    def free(self) -> None:
        """Give the native memory back, after the context that uses it."""
        for buffer in self._buffers:
            ggml.free_buffer(buffer)
        for context in self._contexts:
            ggml.free(context)
        self._buffers.clear()
        self._contexts.clear()


def _write_zeros(tensor: int, offset: int, n_bytes: int) -> None:
    """Make a part of a tensor zero.

    New memory of the processor is zero as a rule, and takes no room before it is written; reading it leaves it so.
    """
    values = np.empty(n_bytes, np.uint8)
    if ggml.is_host(buffer_type_of(tensor)):
        ggml.read(tensor, values.ctypes.data, offset, n_bytes)
        if not values.any():
            return
    values[:] = 0
    ggml.write(tensor, values.ctypes.data, offset, n_bytes)


def _module_of(weight: str) -> str:
    """``attn_q.weight`` of ``blk.3.attn_q.weight``."""
    return weight.split(".", 2)[2]
