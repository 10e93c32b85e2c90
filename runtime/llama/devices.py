"""The devices that llama.cpp can put layers on, and how a model is spread over them.

A device has the name that llama.cpp's own programs use: ``CUDA0``, ``Metal``, ``Vulkan0``, ``RPC0``.
"""

from __future__ import annotations

import ctypes
import socket
from dataclasses import dataclass

import llama_cpp.llama_cpp as native

from runtime.errors import ConfigError
from runtime.llama import ggml

# ggml-backend.h, enum ggml_backend_dev_type: a GPU, and one that shares the machine's memory.
_GPU, _INTEGRATED_GPU = 1, 2
_RPC = "RPC"
_RPC_TIMEOUT_S = 5.0
_MAX_PORT = 65_535


@dataclass(frozen=True, slots=True)
class Device:
    """A device that layers can be put on; the processor is none of them."""

    name: str
    description: str
    """The card's name, or the address of an RPC server."""
    backend: str
    """``CUDA``, ``Metal``, ``Vulkan``, ``RPC``."""
    is_integrated: bool
    """Whether it shares the machine's memory."""
    free_bytes: int
    total_bytes: int
    address: int


@dataclass(frozen=True, slots=True)
class Placement:
    """How a model is spread over devices."""

    n_layers: int = 0
    """Layers on devices, counted from the end; the output head is one more than the model has."""
    devices: tuple[Device, ...] = ()
    tensor_split: tuple[float, ...] = ()
    """Each device's share of the layers, in the order of ``devices``; empty: by free memory."""
    is_as_in_file: bool = False
    """Whether the processor's weights stay as the file has them, mapped, instead of being arranged for its kernels: two
    processes then share them."""

    @property
    def is_remote(self) -> bool:
        """Whether an RPC server holds layers; it serves one process at a time."""
        return any(device.backend == _RPC for device in self.devices)

    def __str__(self) -> str:
        """``CPU``, or each device with its card and the layers on all of them."""
        if not self.n_layers or not self.devices:
            return "CPU"
        names = " + ".join(f"{device.name} ({device.description})" for device in self.devices)
        return f"{names}, {self.n_layers} layers"


def supports_devices() -> bool:
    """Whether this build of llama.cpp has a backend for devices at all."""
    return bool(native.llama_supports_gpu_offload())


def all_devices() -> list[Device]:
    """Every device that layers can be put on, in llama.cpp's order."""
    devices = (_describe(ggml.device(number)) for number in range(ggml.device_count()))
    return [device for device in devices if device is not None]


def backend_names() -> list[str]:
    """Every backend of this build, the processor's included: ``CUDA``, ``BLAS``, ``CPU``."""
    return [_text(ggml.registry_name(ggml.registry(number))) for number in range(ggml.registry_count())]


def choose(names: str) -> list[Device]:
    """The devices that ``--device`` names, in the order given.

    Args:
        names: names with commas between; ``none`` for none; empty for llama.cpp's own choice, which is all RPC servers,
            then all GPUs, or the integrated ones if there are no others (llama.cpp, llama_prepare_model_devices).

    Raises:
        ConfigError: there is no such device.
    """
    known = all_devices()
    if names == "none":
        return []
    if not names:
        remote = [device for device in known if device.backend == _RPC]
        local = [device for device in known if device.backend != _RPC]
        discrete = [device for device in local if not device.is_integrated]
        return remote + (discrete or local)
    by_name = {device.name.lower(): device for device in known}
    wanted = [name.strip() for name in names.split(",")]
    missing = [name for name in wanted if name.lower() not in by_name]
    if missing:
        there = ", ".join(device.name for device in known) or "none"
        raise ConfigError(f"--device: there is no device {missing[0]!r}; those of this build and machine: {there}")
    return [by_name[name.lower()] for name in wanted]


def add_rpc_servers(endpoints: str) -> None:
    """Make the devices of RPC servers known.

    Args:
        endpoints: ``HOST:PORT`` with commas between; empty for none.

    Raises:
        ConfigError: this build has no RPC backend, an endpoint is misspelt, or no server answers there.
    """
    for endpoint in filter(None, (part.strip() for part in endpoints.split(","))):
        registry = ggml.registry_by_name(_RPC.encode())
        if not registry:
            raise ConfigError("--rpc: llama.cpp was built without RPC; run scripts/setup with CMAKE_ARGS=-DGGML_RPC=ON")
        if any(device.backend == _RPC and device.description == endpoint for device in all_devices()):
            continue
        _check_reachable(endpoint)
        add_server = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p)(
            ggml.procedure(registry, b"ggml_backend_rpc_add_server")
        )
        server = add_server(endpoint.encode())
        if not server:
            raise ConfigError(f"--rpc: the server at {endpoint} has no device")
        ggml.register(server)


def _check_reachable(endpoint: str) -> None:
    """llama.cpp waits without a limit for a server that is not there; so one is looked for first."""
    host, _, port = endpoint.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) <= _MAX_PORT:
        raise ConfigError(f"--rpc: {endpoint!r} is not HOST:PORT")
    try:
        socket.create_connection((host, int(port)), timeout=_RPC_TIMEOUT_S).close()
    except OSError as error:
        raise ConfigError(f"--rpc: no server answers at {endpoint}: {error.strerror or error}") from error


def apply_placement(placement: Placement, parameters: native.llama_model_params) -> tuple[object, ...]:
    """Write a placement into llama.cpp's parameters of a model; what they point at, to be kept until it is loaded."""
    parameters.n_gpu_layers = placement.n_layers
    parameters.use_extra_bufts = not placement.is_as_in_file
    addresses = (device.address for device in placement.devices)
    device_list = (ctypes.c_void_p * (len(placement.devices) + 1))(*addresses, None)
    parameters.devices = ctypes.addressof(device_list)
    shares = (ctypes.c_float * int(native.llama_max_devices()))(*placement.tensor_split)
    if placement.tensor_split:
        parameters.tensor_split = ctypes.cast(shares, ctypes.POINTER(ctypes.c_float))
    return device_list, shares


def _describe(address: int) -> Device | None:
    kind = ggml.device_type(address)
    if kind not in {_GPU, _INTEGRATED_GPU}:
        return None
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    ggml.device_memory(address, ctypes.addressof(free), ctypes.addressof(total))
    return Device(
        name=_text(ggml.device_name(address)),
        description=_text(ggml.device_description(address)),
        backend=_text(ggml.registry_name(ggml.registry_of(address))),
        is_integrated=kind == _INTEGRATED_GPU,
        free_bytes=free.value,
        total_bytes=total.value,
        address=address,
    )


def _text(raw: bytes | None) -> str:
    return (raw or b"").decode(errors="replace")
