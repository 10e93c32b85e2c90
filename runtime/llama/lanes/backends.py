"""Which backend computes a node, and whether it can compute what the node is rewritten to.

The scheduler decides by the operation it sees when it splits the graph, which is before the eval callback.
"""

from __future__ import annotations

from dataclasses import dataclass

from runtime.llama import ggml
from runtime.llama.lanes.tensor import buffer_type_of

_CPU_DEVICE = 0  # ggml-backend.h, enum ggml_backend_dev_type


@dataclass(frozen=True, slots=True)
class Backend:
    """A backend of llama.cpp's scheduler: a GPU, BLAS, the processor."""

    address: int
    name: str
    is_cpu: bool


class Backends:
    """Answers by backend, each asked for once."""

    def __init__(self) -> None:
        self._backends: dict[int, Backend] = {}
        self._answers: dict[tuple[int, int, int], str] = {}

    def of(self, scheduler: int, node: int) -> Backend:
        """The backend that computes a node of the scheduler's present graph.

        Raises:
            LookupError: the node was given to none.
        """
        address: int | None = ggml.backend_of(scheduler, node)
        if address is None:
            raise LookupError("the scheduler does not know which backend computes a node")
        if address not in self._backends:
            device = ggml.device_of(address)
            is_cpu = bool(device) and ggml.device_type(device) == _CPU_DEVICE
            name = ggml.backend_name(address).decode(errors="replace")
            self._backends[address] = Backend(address, name, is_cpu)
        return self._backends[address]

    def require(self, backend: Backend, node: int, op: int, matrix: int) -> None:
        """Make sure that a backend can compute a rewritten node, whose first source is in the bank.

        Args:
            backend: what the node was given to.
            node: address of the node, as rewritten.
            op: its operation.
            matrix: address of the bank's tensor; the answer is the same for every use of it with ``op``.

        Raises:
            LookupError: it cannot; the message names backend and operation.
        """
        key = backend.address, op, matrix
        if key not in self._answers:
            self._answers[key] = _objection(backend, node, op, matrix)
        if self._answers[key]:
            raise LookupError(self._answers[key])


def _objection(backend: Backend, node: int, op: int, matrix: int) -> str:
    """Why the backend cannot compute the node; empty if it can."""
    if not ggml.supports_buffer_type(backend.address, buffer_type_of(matrix)):
        return f"{backend.name} computes a node whose lanes are in memory it cannot read"
    if not ggml.supports_op(backend.address, node):
        return f"{backend.name} was given a node that it cannot compute as {ggml.op_name(op).decode()}"
    return ""
