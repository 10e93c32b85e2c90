"""Rewrites the LoRA nodes of llama.cpp's graph so that each token of a batch uses its own lane.

For every weight with LoRA the graph holds four nodes (llama.cpp src/llama-graph.cpp, build_lora_mm)::

    a   = MUL_MAT(A, x)      A: [n_in, 1]     x: [n_in, n]
    b   = MUL_MAT(B, a)      B: [1, n_out]
    s   = SCALE(b, 1)
    out = ADD(W x, s)

The scheduler asks the eval callback about every node after the graph is allocated and before any node of its split is
computed (ggml-backend.cpp, ggml_backend_sched_compute_splits). At that moment a node is rewritten; `nodes` holds the
three things that nodes can be made to do. What backends have done to the graph before, and what they remember of it, is
in the package's own docstring.

llama.cpp uses a graph again while its shape stays the same; then the nodes stay rewritten, and the callback is armed
only for a batch that asks something else of them.
"""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import llama_cpp.llama_cpp as native

from runtime.errors import DecodeError
from runtime.llama import ggml
from runtime.llama.lanes.backends import Backend, Backends
from runtime.llama.lanes.nodes import LaneWeight, Mode, Plan, WeightNodes
from runtime.llama.lanes.tensor import OP_OFFSET, Ops, Tensor, copy_of, name_of

_A_SUFFIX, _B_SUFFIX = ".lora_a", ".lora_b"


@dataclass(frozen=True, slots=True)
class Pair:
    """Addresses of the A and B of one weight as the graph's nodes read them: the template's tensors, or copies."""

    a: int
    b: int


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
        self._backends = Backends()
        self._is_rewriting = False
        self._failure: Exception | None = None
        self._context_handle = 0
        self._scheduler: int | None = None
        """Of the present graph; a change of adapters makes llama.cpp build another."""
        self._plan: Plan | None = None
        self._applied: Plan | None = None
        self._n_tokens = 0
        self._nodes: dict[int, WeightNodes] = {}
        self._partial: dict[int, WeightNodes] = {}
        """Nodes that are not whole yet in the present walk, by the address of the node met last."""
        self._node_backends: dict[int, Backend] = {}
        self._results: dict[int, str] = {}
        """Results that are written and not read yet in the present walk, by the bank's tensor that holds them."""
        self._is_armed = self._has_walked = self._has_fresh = False
        self._is_on_cpu = False
        """Whether the processor computes all our nodes of the present graph."""
        self._n_applied = 0
        self._id_views: dict[tuple[int, int], Tensor] = {}

    def attach(self, weights: Mapping[str, LaneWeight]) -> None:
        """Rewrite from now on: let the template's pairs stand for these weights."""
        self._weights = dict(weights)
        self.resume()

    def pause(self) -> None:
        """Leave the nodes of every coming graph as llama.cpp made them."""
        self._is_rewriting = False

    def resume(self) -> None:
        """Rewrite again; the graph has to be built again (a change of adapters causes that)."""
        self._is_rewriting, self._applied, self._failure = True, None, None

    def begin(self, context_handle: int, plan: Plan, n_tokens: int) -> None:
        """Before a batch of ``n_tokens``: say what its nodes have to do."""
        self._plan, self._n_tokens = plan, n_tokens
        self._has_walked = self._has_fresh = False
        self._n_applied = 0
        self._partial.clear()
        self._results.clear()
        if plan != self._applied and self._needs_no_walk(plan):
            for nodes in self._nodes.values():
                if nodes.mode is Mode.ONE:
                    nodes.point_at(plan.lane or 0)
            self._applied = plan
        # Without a scheduler the callback stays armed: about 1 µs a node.
        self._context_handle = context_handle
        scheduler = ggml.scheduler_of(context_handle)
        self._is_armed = scheduler is None or plan != self._applied
        if scheduler is not None:
            callback = ctypes.cast(self.callback, ctypes.c_void_p).value if self._is_armed else None
            ggml.set_eval_callback(scheduler, callback, None)

    def _needs_no_walk(self, plan: Plan) -> bool:
        """Whether the same nodes have to do the same with another lane, and read their sources at each batch.

        The processor does. Backends that keep a graph would go on with the old lane until the callback is armed.
        Should llama.cpp build a new graph for the batch, it arms the callback itself.
        """
        applied = self._applied
        return (
            self._is_on_cpu
            and applied is not None
            and None not in (applied.lane, plan.lane)
            and dataclasses.replace(applied, lane=plan.lane) == plan
        )

    def end(self) -> None:
        """After the batch.

        Raises:
            DecodeError: the nodes were not what we know; the batch's results must not be used.
        """
        failure, self._failure = self._failure, None
        if failure is None and (self._is_armed or self._has_walked) and self._n_applied != len(self._weights):
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
        if self._failure is not None:
            self._disable(address)
        return False

    def _disable(self, address: int) -> None:
        """Let a node of ours compute nothing: the batch has failed, and half rewritten nodes can abort."""
        nodes = self._partial.get(address) or self._nodes.get(address)
        if nodes is not None:
            nodes.disable()
            # It may not have been taken over yet.
            Tensor.from_address(address).op = self._ops.none

    def _look_at(self, address: int) -> None:
        op = ctypes.c_int.from_address(address + OP_OFFSET).value
        if op not in self._interesting:
            return
        node = Tensor.from_address(address)
        source = node.src[0]
        if not self._is_rewriting:
            self._discover(op, source)
            return
        known = self._nodes.get(address)
        if known is not None and source in known.marks:
            self._apply(known, address)
        elif op == self._ops.mul_mat and node.src[1] in self._partial:
            self._meet_b(self._partial[node.src[1]], address)
        elif op == self._ops.mul_mat and source and (name := name_of(source)).endswith(_A_SUFFIX):
            self._meet_a(name.removesuffix(_A_SUFFIX), address)
        elif op == self._ops.scale and source in self._partial:
            self._partial[address] = self._partial[source]
            self._partial[address].take_s(address)
        elif op == self._ops.add and node.src[1] in self._partial:
            self._meet_out(self._partial[node.src[1]], address)

    def _discover(self, op: int, source: int | None) -> None:
        if op != self._ops.mul_mat or not source:
            return
        name = name_of(source)
        if name.endswith(_A_SUFFIX):
            self.found[name.removesuffix(_A_SUFFIX)] = Pair(source, 0)
        elif name.endswith(_B_SUFFIX):
            weight = name.removesuffix(_B_SUFFIX)
            self.found[weight] = Pair(self.found[weight].a, source)

    def _meet_a(self, name: str, address: int) -> None:
        if name not in self._weights:
            return
        if not self._has_fresh:
            self._has_fresh = self._is_on_cpu = True
            self._scheduler = ggml.scheduler_of(self._context_handle)
            self._nodes.clear()
            self._node_backends.clear()
            self._id_views.clear()
        backend = self._note_backend(address)
        is_on_cpu = backend is not None and backend.is_cpu
        self._is_on_cpu = self._is_on_cpu and is_on_cpu
        weight = self._weights[name]
        nodes = WeightNodes(self._ops, name, weight, address, is_on_cpu=is_on_cpu)
        self._nodes[address] = self._partial[address] = nodes
        self._write(weight.result_a, name)
        self._apply(nodes, address)

    def _meet_b(self, nodes: WeightNodes, address: int) -> None:
        self._partial[address] = nodes
        self._note_backend(address)
        self._results.pop(nodes.weight.result_a, None)
        self._write(nodes.weight.result_b, nodes.name)
        nodes.take_b(address)
        self._require(address, nodes.weight.b)

    def _meet_out(self, nodes: WeightNodes, address: int) -> None:
        self._results.pop(nodes.weight.result_b, None)
        nodes.take_out(address)
        self._n_applied += 1

    def _apply(self, nodes: WeightNodes, address: int) -> None:
        """Let the nodes of a weight, whose ``a`` is at ``address``, do what the batch asks."""
        if self._plan is None:
            raise LookupError("a batch was not announced")
        self._has_walked = True
        weight = nodes.weight
        ids = weight.ids_of_tokens if nodes.n_columns == self._n_tokens else weight.ids_of_outputs
        nodes.apply(self._plan, ctypes.addressof(self._id_view(ids, nodes.n_columns)))
        self._require(address, weight.a)
        if nodes.b is not None and nodes.out is not None:
            self._require(ctypes.addressof(nodes.b), weight.b)
            self._n_applied += 1

    def _write(self, result: int, name: str) -> None:
        """Note that a node of weight ``name`` writes one of the bank's results.

        Raises:
            LookupError: it would overwrite another weight's before that is read.
        """
        if result in self._results:
            raise LookupError(f"{name} would overwrite the result of {self._results[result]} before it is read")
        if result:
            self._results[result] = name

    def _note_backend(self, address: int) -> Backend | None:
        """The backend that computes a node; None where the scheduler cannot be asked."""
        if self._scheduler is None:
            return None
        backend = self._node_backends[address] = self._backends.of(self._scheduler, address)
        return backend

    def _require(self, address: int, matrix: int) -> None:
        """Make sure that a rewritten node, which reads a matrix of the bank, can be computed where it is."""
        backend, op = self._node_backends.get(address), Tensor.from_address(address).op
        if backend is not None and op != self._ops.none:
            self._backends.require(backend, address, op, matrix)

    def _id_view(self, ids: int, n_columns: int) -> Tensor:
        view = self._id_views.get((ids, n_columns))
        if view is None:
            view = self._id_views[ids, n_columns] = copy_of(ids)
            view.ne[1] = n_columns
            view.nb[2] = view.nb[3] = view.nb[1] * n_columns
        return view
