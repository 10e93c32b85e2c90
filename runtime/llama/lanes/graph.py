"""Rewrites the LoRA nodes of llama.cpp's graph so that each token of a batch uses its own lane.

For every weight with LoRA the graph holds four nodes (llama.cpp src/llama-graph.cpp, build_lora_mm)::

    a   = MUL_MAT(A, x)      A: [n_in, r]     x: [n_in, n]
    b   = MUL_MAT(B, a)      B: [r, n_out]
    s   = SCALE(b, 1)
    out = ADD(W x, s)

The scheduler asks the eval callback about every node after the graph is allocated and before any node of its split is
computed (ggml-backend.cpp, ggml_backend_sched_compute_splits); at that moment we let them do one of three things (``s``
does nothing in any of them: true scales are part of the lanes' weights, and ``out`` adds ``b`` itself):

- **none**: no lane of the batch changes this weight; the four nodes do nothing at all.
- **one**: the batch has a single lane; ``a`` and ``b`` multiply with that lane's matrices. Another lane needs no walk
  through the graph: the tensors that stand for those matrices are ours, and are pointed elsewhere.
- **mixed**: ``a`` and ``b`` become ``MUL_MAT_ID``, which takes for each column the matrix that ``ids`` names.

llama.cpp uses a graph again while its shape stays the same; then the nodes stay rewritten and only the data of ``ids``
changes. Nodes are touched only inside the callback, where they are certainly alive.
"""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

import llama_cpp.llama_cpp as native

from runtime.errors import DecodeError
from runtime.llama import ggml
from runtime.llama.lanes.tensor import OP_OFFSET, Ops, Tensor

_A_SUFFIX, _B_SUFFIX = ".lora_a", ".lora_b"


@dataclass(frozen=True, slots=True)
class Pair:
    """Addresses of the A and B of one weight in the template adapter."""

    a: int
    b: int


@dataclass(frozen=True, slots=True)
class LaneWeight:
    """Addresses of what the nodes of one weight work with, all in the buffer type of the template's tensors."""

    a: int
    """``[n_in, rank, n_lanes]``"""
    b: int
    """``[rank, n_out, n_lanes]``"""
    ids_of_tokens: int
    ids_of_outputs: int
    """I32 ``[1, n_batch]``: the lane of each token, and of each token whose logits are wanted."""
    result_a: int = 0
    result_b: int = 0
    """Room of our own for the results of ``a`` and ``b``; 0 where the graph's does."""
    has_narrow_a: bool = False
    """Whether ``a`` leaves out the rows of A beyond the plan's rank; its own room is zero there and stays so."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a batch asks of the nodes."""

    active: frozenset[str]
    """Weights that some lane of the batch changes."""
    lane: int | None
    """The batch's only lane, or None if it mixes several."""
    rank: int
    """Rows of A that some lane has ever used; it never shrinks."""


@dataclass(slots=True)
class _Nodes:
    """The four nodes of one weight in the present graph, and the copies of tensors that they read from."""

    name: str
    weight: LaneWeight
    a: Tensor
    b: Tensor
    s: Tensor
    out: Tensor
    x: int
    n_columns: int = field(init=False)
    x_rows: Tensor = field(init=False)
    """``x`` as ``[n_in, 1, n]``"""
    b_flat: Tensor = field(init=False)
    """``b`` as ``[n_out, n]``"""
    a_whole: Tensor = field(init=False)
    """``a`` with all rows of the bank's rank, for ``b`` to read."""
    stack: Tensor = field(init=False)
    """A of all lanes, with the rows that are needed."""
    planes: tuple[Tensor, Tensor] = field(init=False)
    """One lane's A and B as matrices: what ``a`` and ``b`` multiply with while the batch has a single lane."""
    marks: set[int] = field(init=False)
    """What ``a``'s first source is once the nodes are rewritten."""

    def __post_init__(self) -> None:
        self.n_columns = self.a.ne[1]
        self.x_rows = _copy(self.x)
        _set_columns(self.x_rows, self.n_columns, is_stack=True)
        for node, result in ((self.a, self.weight.result_a), (self.b, self.weight.result_b)):
            if result:
                home = Tensor.from_address(result)
                node.data, node.buffer = home.data, home.buffer
        self.a_whole = _copy(ctypes.addressof(self.a))
        self.b_flat = _copy(ctypes.addressof(self.b))
        self.planes = (_plane(self.weight.a), _plane(self.weight.b))
        self.stack = _copy(self.weight.a)
        self.marks = {self.weight.a, ctypes.addressof(self.planes[0]), ctypes.addressof(self.stack)}

    @property
    def is_in_place(self) -> bool:
        """Whether ``out`` adds onto ``W x`` itself, so that doing nothing leaves the right result."""
        return bool(Tensor.from_address(self.out.src[0]).data == self.out.data)

    def narrow(self, rank: int) -> None:
        """Let ``a`` compute so many rows, if its room allows to leave out the others."""
        if self.weight.has_narrow_a:
            self.a.ne[0] = self.stack.ne[1] = self.planes[0].ne[1] = rank

    def shape_columns(self, *, is_stack: bool) -> None:
        """Let the results be ``[m, n]``, or ``[m, 1, n]`` for products that choose."""
        for tensor in (self.a, self.a_whole, self.b):
            _set_columns(tensor, self.n_columns, is_stack=is_stack)

    def point_at(self, lane: int) -> None:
        """Let the planes be another lane's. They are ours, and not the graph's, so this may happen at any time."""
        for plane, stack in zip(self.planes, (self.weight.a, self.weight.b), strict=True):
            plane.data = Tensor.from_address(stack).data + lane * plane.nb[2]


class LaneGraph:
    """The eval callback of one context. Everything runs on the thread that decodes."""

    def __init__(self, ops: Ops) -> None:
        self._ops = ops
        self._interesting = {ops.mul_mat, ops.mul_mat_id, ops.scale, ops.add, ops.none}
        # The callback object must live as long as the context.
        self.callback = native.ggml_backend_sched_eval_callback(self._visit)
        self.found: dict[str, Pair] = {}
        """The template's pairs, once a batch has gone through the model before ``attach``."""
        self._weights: dict[str, LaneWeight] = {}
        self._names_of_a: dict[int, str] = {}
        self._names_of_b: dict[int, str] = {}
        self._is_rewriting = False
        self._failure: Exception | None = None
        self._plan: Plan | None = None
        self._applied: Plan | None = None
        self._n_tokens = 0
        self._nodes: dict[int, _Nodes] = {}
        self._partial: dict[int, tuple[int, ...]] = {}
        self._has_walked = self._has_fresh = False
        self._n_applied = 0
        self._id_views: dict[tuple[int, int], Tensor] = {}

    def attach(self, weights: Mapping[str, LaneWeight]) -> None:
        """Rewrite from now on: let the template's pairs stand for these weights."""
        self._weights = dict(weights)
        self._names_of_a = {self.found[name].a: name for name in weights}
        self._names_of_b = {self.found[name].b: name for name in weights}
        self.resume()

    def pause(self) -> None:
        """Leave the nodes of every coming graph as llama.cpp made them."""
        self._is_rewriting = False

    def resume(self) -> None:
        """Rewrite again; the graph has to be built anew (a change of adapters sees to that)."""
        self._is_rewriting, self._applied, self._failure = True, None, None

    def begin(self, context_handle: int, plan: Plan, n_tokens: int) -> None:
        """Before a batch of ``n_tokens``: say what its nodes have to do."""
        self._plan, self._n_tokens = plan, n_tokens
        self._has_walked = self._has_fresh = False
        self._n_applied = 0
        self._partial.clear()
        applied = self._applied
        if (
            applied is not None
            and None not in (applied.lane, plan.lane)
            and dataclasses.replace(applied, lane=plan.lane) == plan
        ):
            # The same nodes, another lane. Should llama.cpp build a new graph, it arms the callback itself.
            self._point_at(plan)
            self._applied = plan
        # Without a scheduler the callback stays armed: about 1 µs a node.
        if scheduler := ggml.scheduler_of(context_handle):
            is_settled = plan == self._applied
            callback = None if is_settled else ctypes.cast(self.callback, ctypes.c_void_p).value
            ggml.set_eval_callback(scheduler, callback, None)

    def _point_at(self, plan: Plan) -> None:
        for nodes in self._nodes.values():
            if nodes.name in plan.active:
                nodes.point_at(plan.lane or 0)

    def end(self) -> None:
        """After the batch.

        Raises:
            DecodeError: the nodes were not what we know; the batch's results must not be used.
        """
        failure, self._failure = self._failure, None
        if failure is None and self._has_walked and self._n_applied != len(self._weights):
            failure = LookupError(f"{self._n_applied} of {len(self._weights)} weights found in the graph")
        if failure is not None:
            self._applied = None
            raise DecodeError(f"llama.cpp's graph could not be given its lanes: {failure}") from failure
        if self._has_walked:
            self._applied = self._plan

    def _visit(self, address: int, is_asking: bool, _user_data: object) -> bool:  # noqa: FBT001 - ggml's signature
        """The callback. True for an answer we never asked for; False to let the graph run on in one piece."""
        if not is_asking:
            return True
        try:
            self._look_at(address)
        except Exception as error:  # noqa: BLE001 - no exception may pass through native code
            self._failure = self._failure or error
        return False

    def _look_at(self, address: int) -> None:
        op = ctypes.c_int.from_address(address + OP_OFFSET).value
        if op not in self._interesting:
            return
        node = Tensor.from_address(address)
        source = node.src[0]
        if not self._is_rewriting:
            self._discover(op, source)
            return
        nodes = self._nodes.get(address)
        if nodes is not None and source in nodes.marks:
            self._apply(nodes)
        elif op == self._ops.mul_mat and source in self._names_of_a:
            self._forget_older_graph()
            self._partial[address] = (address,)
        elif op == self._ops.mul_mat and source in self._names_of_b:
            self._partial[address] = (*self._partial[node.src[1]], address)
        elif op == self._ops.scale and source in self._partial:
            self._partial[address] = (*self._partial[source], address)
        elif op == self._ops.add and node.src[1] in self._partial:
            a, b, s = self._partial[node.src[1]]
            self._complete(a, b, s, address)

    def _discover(self, op: int, source: int | None) -> None:
        if op != self._ops.mul_mat or not source:
            return
        name = Tensor.from_address(source).name.decode()
        if name.endswith(_A_SUFFIX):
            weight = name.removesuffix(_A_SUFFIX)
            self.found[weight] = Pair(source, 0)
        elif name.endswith(_B_SUFFIX):
            weight = name.removesuffix(_B_SUFFIX)
            self.found[weight] = Pair(self.found[weight].a, source)

    def _forget_older_graph(self) -> None:
        if not self._has_fresh:
            self._has_fresh = True
            self._nodes.clear()
            self._id_views.clear()

    def _complete(self, a: int, b: int, s: int, out: int) -> None:
        """All four nodes of a weight are known: rewrite them."""
        nodes_at = Tensor.from_address
        name = self._names_of_a[nodes_at(a).src[0]]
        x = nodes_at(a).src[1]
        nodes = _Nodes(name, self._weights[name], nodes_at(a), nodes_at(b), nodes_at(s), nodes_at(out), x)
        self._nodes[a] = nodes
        self._apply(nodes)

    def _apply(self, nodes: _Nodes) -> None:
        plan = self._plan
        if plan is None:
            raise LookupError("a batch was not announced")
        self._has_walked = True
        self._n_applied += 1
        nodes.narrow(plan.rank)
        is_active = nodes.name in plan.active and nodes.n_columns > 0
        if not is_active and nodes.is_in_place:
            self._skip(nodes)
        elif not is_active:
            self._use_one(nodes, 0)
        elif plan.lane is not None:
            self._use_one(nodes, plan.lane)
        else:
            self._use_many(nodes)

    def _skip(self, nodes: _Nodes) -> None:
        for node in (nodes.a, nodes.b, nodes.s, nodes.out):
            node.op = self._ops.none
        nodes.a.src[0] = nodes.weight.a

    def _use_one(self, nodes: _Nodes, lane: int) -> None:
        """Multiply with one lane's matrices."""
        nodes.point_at(lane)
        nodes.shape_columns(is_stack=False)
        plane_a, plane_b = map(ctypes.addressof, nodes.planes)
        self._connect(nodes, self._ops.mul_mat, (plane_a, nodes.x), plane_b, None)
        nodes.out.src[1] = ctypes.addressof(nodes.b)

    def _use_many(self, nodes: _Nodes) -> None:
        """Multiply each column with the matrices of its own lane."""
        weight = nodes.weight
        ids = weight.ids_of_tokens if nodes.n_columns == self._n_tokens else weight.ids_of_outputs
        id_view = ctypes.addressof(self._id_view(ids, nodes.n_columns))
        nodes.shape_columns(is_stack=True)
        sources = ctypes.addressof(nodes.stack), ctypes.addressof(nodes.x_rows)
        self._connect(nodes, self._ops.mul_mat_id, sources, weight.b, id_view)
        nodes.out.src[1] = ctypes.addressof(nodes.b_flat)

    def _connect(
        self, nodes: _Nodes, product: int, sources_of_a: tuple[int, int], matrix_b: int, ids: int | None
    ) -> None:
        """Give the four nodes their operations and the products their sources."""
        nodes.a.op = nodes.b.op = product
        # The template's scale is 1: the sum takes b as it is, which saves a pass over it.
        nodes.s.op, nodes.out.op = self._ops.none, self._ops.add
        nodes.a.src[0], nodes.a.src[1], nodes.a.src[2] = *sources_of_a, ids
        # The same place as the result of a, but all rows of it.
        source_of_b = nodes.a_whole if nodes.weight.has_narrow_a else nodes.a
        nodes.b.src[0], nodes.b.src[1], nodes.b.src[2] = matrix_b, ctypes.addressof(source_of_b), ids

    def _id_view(self, ids: int, n_columns: int) -> Tensor:
        view = self._id_views.get((ids, n_columns))
        if view is None:
            view = self._id_views[ids, n_columns] = _copy(ids)
            view.ne[1] = n_columns
            view.nb[2] = view.nb[3] = view.nb[1] * n_columns
        return view


def buffer_type_of(tensor: int) -> int:
    """The buffer type a tensor lives in."""
    return int(ggml.buffer_type(Tensor.from_address(tensor).buffer))


def plane_bytes_of(tensor: int) -> int:
    """Bytes of one matrix of a stack."""
    return int(Tensor.from_address(tensor).nb[2])


def columns_of(tensor: int) -> int:
    """Values in a row of a tensor."""
    return int(Tensor.from_address(tensor).ne[0])


def rows_of(tensor: int) -> int:
    """Rows of one matrix of a tensor."""
    return int(Tensor.from_address(tensor).ne[1])


def _copy(address: int) -> Tensor:
    return Tensor.from_buffer_copy(ctypes.string_at(address, ctypes.sizeof(Tensor)))


def _set_columns(tensor: Tensor, n_columns: int, *, is_stack: bool) -> None:
    """Give a matrix of ``n_columns`` columns the shape ``[m, n]``, or ``[m, 1, n]``; its bytes stay where they are."""
    column_bytes = tensor.nb[1]
    tensor.ne[1], tensor.ne[2] = (1, n_columns) if is_stack else (n_columns, 1)
    tensor.nb[2] = column_bytes if is_stack else column_bytes * n_columns
    tensor.nb[3] = column_bytes * n_columns


def _plane(stack: int) -> Tensor:
    """The first matrix of a stack, as a matrix."""
    plane = _copy(stack)
    plane.ne[2] = 1
    plane.nb[3] = plane.nb[2]
    return plane
