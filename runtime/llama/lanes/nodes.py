"""The four LoRA nodes of one weight in llama.cpp's graph, and the three things they can be made to do.

Source of the nodes: llama.cpp src/llama-graph.cpp, build_lora_mm (see `graph`). Nodes may be touched only inside the
eval callback, where they are certainly alive and not yet computed.
"""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass
from enum import Enum

from runtime.llama.lanes.tensor import Ops, Tensor, copy_of

_F32_BYTES = 4
# op_params of a SCALE node that copies: factor 1 and offset 0, as float32 bits (ggml.c, ggml_scale_impl).
_COPY_PARAMETERS = struct.unpack("<ii", struct.pack("<ff", 1.0, 0.0))


@dataclass(frozen=True, slots=True)
class LaneWeight:
    """Addresses of what the nodes of one weight work with, all in one buffer type."""

    a: int
    """``[n_in, rank, n_lanes]``"""
    b: int
    """``[rank, n_out, n_lanes]``"""
    ids_of_tokens: int
    ids_of_outputs: int
    """I32 ``[1, n_batch]``: the lane of each token, and of each token whose logits are wanted."""
    result_a: int
    """Memory of the bank for the result of ``a``: F32 ``[rank, n_batch]``."""
    result_b: int = 0
    """Memory of the bank for the result of ``b``; 0 where the graph's own memory is large enough."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a batch asks of the nodes."""

    active: frozenset[str]
    """Weights that some lane of the batch changes."""
    lane: int | None
    """The batch's only lane, or None if it mixes several."""
    rank: int
    """Rows of A that some lane has ever used; it never shrinks."""


class Mode(Enum):
    """What the four nodes of a weight do in one batch."""

    NONE = "none"
    """No lane of the batch changes the weight: ``a`` and ``b`` do nothing, ``out`` is ``W x``."""
    ONE = "one"
    """The batch has a single lane: plain products with that lane's matrices."""
    MIXED = "mixed"
    """Each column is multiplied with the matrices of its own lane."""


class WeightNodes:
    """The nodes ``a``, ``b``, ``s`` and ``out`` of one weight, and the copies of tensors that they read.

    The callback meets the nodes one by one, and other backends may compute between them; so each is rewritten at the
    moment it is first seen, and all four at once when the graph is used again.
    """

    def __init__(self, ops: Ops, name: str, weight: LaneWeight, address: int, *, is_on_cpu: bool) -> None:
        """Take ``a`` over.

        Args:
            ops: the numbers of operations.
            name: the weight's.
            weight: what stands for it in the bank.
            address: of the node ``a``.
            is_on_cpu: whether the processor computes ``a``. The processor's products write to strided rows, so there
                the rows of A that no lane uses are left out; their results are zero in the bank and stay so.
        """
        self._ops = ops
        self.name, self.weight = name, weight
        self._is_on_cpu = is_on_cpu
        self.a = Tensor.from_address(address)
        self.b: Tensor | None = None
        self._b_flat: Tensor | None = None
        self.s: Tensor | None = None
        self.out: Tensor | None = None
        self.n_columns: int = self.a.ne[1]
        self._x = self.a.src[1]
        self._x_rows = copy_of(self._x)
        set_columns(self._x_rows, self.n_columns, is_stack=True)
        self._move_result_of_a()
        self._a_whole = copy_of(address)
        self._planes = _plane(weight.a), _plane(weight.b)
        self._stack = copy_of(weight.a)
        self.marks = {weight.a, ctypes.addressof(self._planes[0]), ctypes.addressof(self._stack)}
        """Addresses that ``a``'s first source can have once it is rewritten."""
        self._mode = Mode.NONE
        self._id_view: int | None = None

    def _move_result_of_a(self) -> None:
        """Let ``a`` write all rows of the bank's rank into the bank's memory; the template's has a single row."""
        home = Tensor.from_address(self.weight.result_a)
        self.a.data, self.a.buffer = home.data, home.buffer
        self.a.ne[0], self.a.nb[1] = home.ne[0], _F32_BYTES * home.ne[0]
        set_columns(self.a, self.n_columns, is_stack=False)

    def take_b(self, address: int) -> None:
        """Take ``b`` over."""
        self.b = Tensor.from_address(address)
        if self.weight.result_b:
            home = Tensor.from_address(self.weight.result_b)
            self.b.data, self.b.buffer = home.data, home.buffer
        self._b_flat = copy_of(address)
        self._rewrite_b(self.b)

    def take_s(self, address: int) -> None:
        """Take ``s`` over."""
        self.s = Tensor.from_address(address)
        self._rewrite_s(self.s)

    def take_out(self, address: int) -> None:
        """Take ``out`` over."""
        self.out = Tensor.from_address(address)
        self._rewrite_out(self.out)

    @property
    def mode(self) -> Mode:
        """What the nodes do now."""
        return self._mode

    def apply(self, plan: Plan, id_view: int) -> None:
        """Let the nodes that are known do what a batch asks; those that are taken over later follow.

        Args:
            plan: the batch's.
            id_view: address of the lane ids, ``[1, n_columns]``.
        """
        is_active = self.name in plan.active and self.n_columns > 0
        if not is_active:
            self._mode = Mode.NONE
        elif plan.lane is not None:
            self._mode = Mode.ONE
            self.point_at(plan.lane)
        else:
            self._mode = Mode.MIXED
        self._id_view = id_view if self._mode is Mode.MIXED else None
        if self._is_on_cpu:
            self.a.ne[0] = self._stack.ne[1] = self._planes[0].ne[1] = plan.rank
        self._rewrite_a()
        if self.b is not None:
            self._rewrite_b(self.b)
        if self.s is not None:
            self._rewrite_s(self.s)
        if self.out is not None:
            self._rewrite_out(self.out)

    def disable(self) -> None:
        """Let the nodes compute nothing; ``out`` may sum what it finds."""
        for node in (self.a, self.b, self.s):
            if node is not None:
                node.op = self._ops.none

    def point_at(self, lane: int) -> None:
        """Let the planes be a lane's. They are our own tensors, not the graph's, so this may happen at any time."""
        for plane, stack in zip(self._planes, (self.weight.a, self.weight.b), strict=True):
            plane.data = Tensor.from_address(stack).data + lane * plane.nb[2]

    @property
    def _product(self) -> int:
        """The operation of ``a`` and ``b``."""
        return {Mode.NONE: self._ops.none, Mode.ONE: self._ops.mul_mat, Mode.MIXED: self._ops.mul_mat_id}[self._mode]

    def _rewrite_a(self) -> None:
        is_stack = self._mode is Mode.MIXED
        for tensor in (self.a, self._a_whole):
            set_columns(tensor, self.n_columns, is_stack=is_stack)
        matrix = {
            Mode.NONE: self.weight.a,
            Mode.ONE: ctypes.addressof(self._planes[0]),
            Mode.MIXED: ctypes.addressof(self._stack),
        }[self._mode]
        self.a.op = self._product
        self.a.src[0] = matrix
        self.a.src[1] = ctypes.addressof(self._x_rows) if is_stack else self._x
        self.a.src[2] = self._id_view

    def _rewrite_b(self, b: Tensor) -> None:
        set_columns(b, self.n_columns, is_stack=self._mode is Mode.MIXED)
        # With fewer rows in a, b reads the same memory with all rows of it.
        source = self._a_whole if self._is_on_cpu else self.a
        b.op = self._product
        b.src[0] = ctypes.addressof(self._planes[1]) if self._mode is Mode.ONE else self.weight.b
        b.src[1] = ctypes.addressof(source)
        b.src[2] = self._id_view

    def _rewrite_s(self, s: Tensor) -> None:
        # The template's scale is 1: the sum takes b as it is, which saves a pass over it.
        s.op = self._ops.none

    def _rewrite_out(self, out: Tensor) -> None:
        out.op_params[0] = out.op_params[1] = 0
        if self._mode is not Mode.NONE:
            summand = self._b_flat if self._mode is Mode.MIXED else self.b
            out.op = self._ops.add
            out.src[1] = ctypes.addressof(summand) if summand is not None else None
        elif is_in_place(out):
            out.op = self._ops.none
        else:
            out.op = self._ops.scale
            out.op_params[0], out.op_params[1] = _COPY_PARAMETERS


def is_in_place(out: Tensor) -> bool:
    """Whether a sum writes onto its first summand, so that doing nothing leaves that summand in place."""
    return bool(Tensor.from_address(out.src[0]).data == out.data)


def set_columns(tensor: Tensor, n_columns: int, *, is_stack: bool) -> None:
    """Give a matrix of ``n_columns`` columns the shape ``[m, n]``, or ``[m, 1, n]``; its bytes stay where they are."""
    column_bytes = tensor.nb[1]
    tensor.ne[1], tensor.ne[2] = (1, n_columns) if is_stack else (n_columns, 1)
    tensor.nb[2] = column_bytes if is_stack else column_bytes * n_columns
    tensor.nb[3] = column_bytes * n_columns


def _plane(stack: int) -> Tensor:
    """The first matrix of a stack, as a matrix."""
    plane = copy_of(stack)
    plane.ne[2] = 1
    plane.nb[3] = plane.nb[2]
    return plane
