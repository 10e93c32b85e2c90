"""``struct ggml_tensor`` as the loaded library lays it out, and the proof of it.

With ``graph.py`` the only code that looks inside a tensor. Source: llama.cpp ggml/include/ggml.h; sizes and offsets are
checked against what ggml's public functions say before anything is written through them.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from dataclasses import dataclass

from runtime.llama import ggml

N_DIMS = 4
_N_SOURCES = 10
_N_PARAMETERS = 16
_NAME_BYTES = 64
# A tensor stands in its context behind a header of this size: struct ggml_object.
_OBJECT_BYTES = 32
_MAX_OPS = 128
_I32, _F32 = 26, 0  # enum ggml_type


class Tensor(ctypes.Structure):
    """``struct ggml_tensor``. An instance may be a view of native memory (``from_address``) or a copy of our own."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * N_DIMS),
        ("nb", ctypes.c_size_t * N_DIMS),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * _N_PARAMETERS),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * _N_SOURCES),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * _NAME_BYTES),
        ("extra", ctypes.c_void_p),
        ("padding", ctypes.c_char * 8),
    )


OP_OFFSET: int = Tensor.op.offset


class LayoutError(Exception):
    """The loaded library has another layout of tensors than we know; they must not be touched."""


@dataclass(frozen=True, slots=True)
class Ops:
    """The numbers of the operations that graph rewriting meets, read off nodes that ggml made."""

    none: int
    mul_mat: int
    mul_mat_id: int
    scale: int
    add: int


def prove_layout() -> Ops:
    """Check every field against ggml's own functions, and learn the numbers of operations.

    Raises:
        LayoutError: something is not where we look for it.
    """
    overhead = ggml.tensor_overhead()
    if overhead != ctypes.sizeof(Tensor) + _OBJECT_BYTES:
        raise LayoutError(f"a tensor takes {overhead} bytes, not {ctypes.sizeof(Tensor) + _OBJECT_BYTES}")
    context = ggml.new_context(64)
    if context is None:
        raise LayoutError("ggml has no memory for a test")
    try:
        ops = _learn_ops(context)
        _check_fields(context)
        _check_memory()
    finally:
        ggml.free(context)
    return ops


def _at(address: int) -> Tensor:
    return Tensor.from_address(address)


def _expect(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise LayoutError(f"{what} is {found}, not {expected}")


def _learn_ops(context: int) -> Ops:
    """Make one node of each operation and read its number, sources and shape."""
    a = ggml.new_tensor_2d(context, _F32, 3, 5)
    b = ggml.new_tensor_2d(context, _F32, 3, 7)
    stack = ggml.new_tensor_3d(context, _F32, 3, 5, 2)
    rows = ggml.new_tensor_3d(context, _F32, 3, 1, 7)
    ids = ggml.new_tensor_2d(context, _I32, 1, 7)
    product, chosen = ggml.mul_mat(context, a, b), ggml.mul_mat_id(context, stack, rows, ids)
    scaled, total = ggml.scale(context, a, 2.5), ggml.add(context, a, a)
    _expect("the product's first sources", list(_at(product).src)[:3], [a, b, None])
    _expect("the chosen product's sources", list(_at(chosen).src)[:3], [stack, rows, ids])
    _expect("the product's shape", list(_at(product).ne), [5, 7, 1, 1])
    _expect("the chosen product's shape", list(_at(chosen).ne), [5, 1, 7, 1])
    _expect("the chosen product's strides", list(_at(chosen).nb), [4, 20, 20, 140])
    _expect("the factor", struct.pack("<i", _at(scaled).op_params[0]), struct.pack("<f", 2.5))
    nodes = {b"NONE": a, b"MUL_MAT": product, b"MUL_MAT_ID": chosen, b"SCALE": scaled, b"ADD": total}
    numbers = {name: _at(node).op for name, node in nodes.items()}
    for name, number in numbers.items():
        if not 0 <= number < _MAX_OPS or ggml.op_name(number) != name:
            raise LayoutError(f"operation {number} is not {name.decode()}")
    return Ops(*(numbers[name] for name in (b"NONE", b"MUL_MAT", b"MUL_MAT_ID", b"SCALE", b"ADD")))


def _check_fields(context: int) -> None:
    """Shape, strides, type, name, flags and views."""
    address = ggml.new_tensor_3d(context, _I32, 3, 5, 7)
    tensor = _at(address)
    _expect("the type", tensor.type, _I32)
    _expect("the shape", list(tensor.ne), [3, 5, 7, 1])
    _expect("the strides", list(tensor.nb), [4, 12, 60, 420])
    _expect("the size", ggml.nbytes(address), 420)
    tensor.ne[1], tensor.ne[2] = 1, 2
    _expect("the size after a change of shape", ggml.nbytes(address), 3 * 4 + 60)
    ggml.set_name(address, b"proof")
    _expect("the name", tensor.name, b"proof")
    flags = tensor.flags
    ggml.set_input(address)
    _expect("the flags of an input", tensor.flags, flags | 1)
    view = _at(ggml.view_1d(context, address, 2, 16))
    _expect("the source of a view", view.view_src, address)
    _expect("the offset of a view", view.view_offs, 16)


def _check_memory() -> None:
    """Buffer and data of a tensor that has memory."""

    def make(context: int) -> int:
        return int(ggml.new_tensor_2d(context, _F32, 8, 2))

    address, free = _allocate(make)
    try:
        tensor = _at(address)
        _expect("the data", tensor.data, ggml.get_data(address))
        _expect("the buffer's type", ggml.buffer_type(tensor.buffer or 0), ggml.cpu_buffer_type())
        values = (ctypes.c_float * 2)(1.5, -2.0)
        ggml.write(address, ctypes.addressof(values), 4 * 9, 8)
        found = list((ctypes.c_float * 16).from_address(tensor.data))[9:11]
        _expect("the data after a write", found, [1.5, -2.0])
    finally:
        free()


def _allocate(make: Callable[[int], int]) -> tuple[int, Callable[[], None]]:
    """A tensor with memory of the processor's, and what frees it."""
    context = ggml.new_context(4)
    address = make(context or 0)
    buffer = ggml.alloc_tensors(context or 0, ggml.cpu_buffer_type())
    if not context or not buffer:
        raise LayoutError("ggml has no memory for a test")

    def free() -> None:
        ggml.free_buffer(buffer)
        ggml.free(context)

    return address, free


def copy_of(address: int) -> Tensor:
    """A tensor of our own with the fields of another; its data is the other's."""
    return Tensor.from_buffer_copy(ctypes.string_at(address, ctypes.sizeof(Tensor)))


def name_of(address: int) -> str:
    """A tensor's name; the original's for a copy on another backend, which the scheduler calls ``CUDA0#name#0``.

    Source: ggml-backend.cpp, ggml_backend_sched_split_graph.
    """
    name: str = Tensor.from_address(address).name.decode(errors="replace")
    return name.split("#")[-2] if name.count("#") > 1 else name


def buffer_type_of(address: int) -> int:
    """The buffer type a tensor lives in."""
    return int(ggml.buffer_type(Tensor.from_address(address).buffer))


def plane_bytes_of(address: int) -> int:
    """Bytes of one matrix of a stack."""
    return int(Tensor.from_address(address).nb[2])


def columns_of(address: int) -> int:
    """Values in a row of a tensor."""
    return int(Tensor.from_address(address).ne[0])


def rows_of(address: int) -> int:
    """Rows of one matrix of a tensor."""
    return int(Tensor.from_address(address).ne[1])
