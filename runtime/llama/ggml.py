"""The few functions of ggml's own API that the lanes need, under their own names.

A context holds tensors' headers, a buffer their data; a buffer type is a kind of memory (the processor's, a GPU's).
Addresses are plain integers.

Source: llama.cpp ggml/include/ggml.h, ggml-alloc.h, ggml-backend.h, as of llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from llama_cpp.llama_cpp import ctypes_function

_pointer, _size, _int64, _int, _text = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64, ctypes.c_int, ctypes.c_char_p


class InitParameters(ctypes.Structure):
    """``struct ggml_init_params``."""

    _fields_ = (("mem_size", _size), ("mem_buffer", _pointer), ("no_alloc", ctypes.c_bool))


def _declare(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    """The library's function ``name``, with the types of its result and arguments."""

    @ctypes_function(name, list(arguments), result)  # type: ignore[untyped-decorator]
    def function() -> None:
        """Stands for the native function."""

    return function  # type: ignore[no-any-return]


init = _declare("ggml_init", _pointer, InitParameters)
free = _declare("ggml_free", None, _pointer)
tensor_overhead = _declare("ggml_tensor_overhead", _size)
op_name = _declare("ggml_op_name", _text, _int)
commit = _declare("ggml_commit", _text)

# (context, type, n_columns, n_rows[, n_planes])
new_tensor_2d = _declare("ggml_new_tensor_2d", _pointer, _pointer, _int, _int64, _int64)
new_tensor_3d = _declare("ggml_new_tensor_3d", _pointer, _pointer, _int, _int64, _int64, _int64)
# (context, sources...)
mul_mat = _declare("ggml_mul_mat", _pointer, _pointer, _pointer, _pointer)
mul_mat_id = _declare("ggml_mul_mat_id", _pointer, _pointer, _pointer, _pointer, _pointer)
add = _declare("ggml_add", _pointer, _pointer, _pointer, _pointer)
scale = _declare("ggml_scale", _pointer, _pointer, _pointer, ctypes.c_float)
# (context, tensor, n_values, offset in bytes)
view_1d = _declare("ggml_view_1d", _pointer, _pointer, _pointer, _int64, _size)

set_name = _declare("ggml_set_name", _pointer, _pointer, _text)
set_input = _declare("ggml_set_input", None, _pointer)
nbytes = _declare("ggml_nbytes", _size, _pointer)
get_data = _declare("ggml_get_data", _pointer, _pointer)

cpu_buffer_type = _declare("ggml_backend_cpu_buffer_type", _pointer)
# (context, buffer type): a buffer for all tensors of the context; None if there is not enough memory
alloc_tensors = _declare("ggml_backend_alloc_ctx_tensors_from_buft", _pointer, _pointer, _pointer)
# (buffer type, tensor): with the scratch that the tensor's operation needs there
alloc_size = _declare("ggml_backend_buft_get_alloc_size", _size, _pointer, _pointer)
# (buffer type): whether the processor can read and write it
is_host = _declare("ggml_backend_buft_is_host", ctypes.c_bool, _pointer)
buffer_type = _declare("ggml_backend_buffer_get_type", _pointer, _pointer)
buffer_size = _declare("ggml_backend_buffer_get_size", _size, _pointer)
clear_buffer = _declare("ggml_backend_buffer_clear", None, _pointer, ctypes.c_uint8)
free_buffer = _declare("ggml_backend_buffer_free", None, _pointer)
# (tensor, data, offset in bytes, n_bytes): done when they return
write = _declare("ggml_backend_tensor_set", None, _pointer, _pointer, _size, _size)
read = _declare("ggml_backend_tensor_get", None, _pointer, _pointer, _size, _size)

# (folder): load the backends that lie there as libraries of their own
load_backend = _declare("ggml_backend_load", _pointer, _text)
load_backends = _declare("ggml_backend_load_all_from_path", None, _text)
device_count = _declare("ggml_backend_dev_count", _size)
device = _declare("ggml_backend_dev_get", _pointer, _size)
device_name = _declare("ggml_backend_dev_name", _text, _pointer)
device_type = _declare("ggml_backend_dev_type", _int, _pointer)
device_description = _declare("ggml_backend_dev_description", _text, _pointer)
# (device, where free bytes go, where all bytes go)
device_memory = _declare("ggml_backend_dev_memory", None, _pointer, _pointer, _pointer)

# A registry is a backend's list of its devices.
registry_count = _declare("ggml_backend_reg_count", _size)
registry = _declare("ggml_backend_reg_get", _pointer, _size)
registry_by_name = _declare("ggml_backend_reg_by_name", _pointer, _text)
registry_of = _declare("ggml_backend_dev_backend_reg", _pointer, _pointer)
registry_name = _declare("ggml_backend_reg_name", _text, _pointer)
# (registry, name): a function that only this backend has, or None
procedure = _declare("ggml_backend_reg_get_proc_address", _pointer, _pointer, _text)
register = _declare("ggml_backend_register", None, _pointer)

backend_name = _declare("ggml_backend_name", _text, _pointer)
device_of = _declare("ggml_backend_get_device", _pointer, _pointer)
# (backend, node or buffer type)
supports_op = _declare("ggml_backend_supports_op", ctypes.c_bool, _pointer, _pointer)
supports_buffer_type = _declare("ggml_backend_supports_buft", ctypes.c_bool, _pointer, _pointer)
# (scheduler, node): None if the scheduler does not know the node
backend_of = _declare("ggml_backend_sched_get_tensor_backend", _pointer, _pointer, _pointer)

# (scheduler, callback or None, user data)
set_eval_callback = _declare("ggml_backend_sched_set_eval_callback", None, _pointer, _pointer, _pointer)


def new_context(n_tensors: int) -> int | None:
    """A context for that number of tensors and nodes, whose data lies elsewhere; None without enough memory."""
    no_alloc = True
    context: int | None = init(InitParameters(n_tensors * tensor_overhead(), None, no_alloc))
    return context


try:
    # llama_context::get_sched: no part of the C API, but exported on Linux and macOS.
    _get_sched: Callable[..., Any] | None = _declare("_ZNK13llama_context9get_schedEv", _pointer, _pointer)
except AttributeError:
    _get_sched = None


def scheduler_of(llama_context: int) -> int | None:
    """The scheduler of a llama.cpp context, or None where it is not to be had."""
    return None if _get_sched is None else _get_sched(llama_context)
