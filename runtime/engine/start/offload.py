"""How many layers the devices have room for. Pure arithmetic on the header's numbers."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from convert.gguf.header import GgufHeader
from convert.rules.model import check_model
from runtime.config import EngineSettings
from runtime.engine.scheduler import EngineLimits
from runtime.errors import ConfigError, ModelLoadError
from runtime.llama.devices import Device, Placement
from runtime.llama.lanes.template import lora_shapes

_LOG = logging.getLogger("gemlane.engine")
# Of a device's free memory, what weights, cache and lanes may take; the rest is for compute buffers and other programs.
_DEVICE_PART = 0.85
# Bytes a value takes, scales of blocks included.
_VALUE_BYTES = {"f32": 4.0, "f16": 2.0, "q8_0": 34 / 32}
# llama.cpp rounds the cells of a cache up to a multiple of this (llama-context.cpp, n_ctx).
_CELLS_STEP = 256
_HOW_TO_BUILD = "scripts/setup --cuda, --metal, --vulkan or --rocm builds it with one"


def place(
    settings: EngineSettings, header: GgufHeader, limits: EngineLimits, devices: Sequence[Device], *, has_backend: bool
) -> Placement:
    """How to spread the model: what the user asked for, as far as it fits.

    Args:
        settings: the user's.
        header: that of the model's file.
        limits: how many cells the cache has, and how wide batches are.
        devices: those to use, in this order.
        has_backend: whether this build of llama.cpp can use devices at all.

    Raises:
        ModelLoadError: layers on a device were asked for, and there is none.
        ConfigError: ``--tensor-split`` names more devices than there are.
    """
    asked = settings.gpu_layers
    if asked == "0" or not devices:
        if asked not in {"0", "auto"}:
            raise ModelLoadError(_no_device(settings, has_backend=has_backend))
        return Placement()
    shares = _shares(settings, devices)
    n_all = check_model(header).hyperparameters.n_layers + 1
    n_wanted = n_all if asked in {"auto", "all"} else min(int(asked), n_all)
    n_fitting = _n_fitting(settings, header, limits, devices, shares, 1.0 if asked.isdecimal() else _DEVICE_PART)
    if n_fitting < n_wanted:
        _LOG.warning(
            "%s has room for %d of %d layers with their cache and lanes; the others stay on the processor",
            " and ".join(device.name for device in devices),
            n_fitting,
            n_wanted,
        )
    n_layers = min(n_wanted, n_fitting)
    return Placement(n_layers, tuple(devices) if n_layers else (), shares if n_layers else ())


def with_fewer_layers(placement: Placement) -> Placement:
    """The next thing to try where a device refused: three quarters of the layers, and in the end none."""
    n_layers = placement.n_layers * 3 // 4
    return Placement(n_layers, placement.devices, placement.tensor_split) if n_layers else Placement()


def _no_device(settings: EngineSettings, *, has_backend: bool) -> str:
    what = f"--gpu-layers {settings.gpu_layers} asks for a GPU"
    if settings.device == "none":
        return f"{what}, and --device none for none"
    if has_backend:
        return f"{what}, but llama.cpp finds none on this machine; check its driver, or start with --gpu-layers 0"
    return f"{what}, but llama.cpp was built without a backend for any; {_HOW_TO_BUILD}, --gpu-layers 0 does without"


def _shares(settings: EngineSettings, devices: Sequence[Device]) -> tuple[float, ...]:
    """What ``--tensor-split`` says, as parts of 1."""
    if not settings.tensor_split:
        return ()
    numbers = [float(number) for number in settings.tensor_split.split(",")]
    if len(numbers) > len(devices):
        raise ConfigError(
            f"--tensor-split {settings.tensor_split} is for {len(numbers)} devices; {len(devices)} are used"
        )
    numbers += [0.0] * (len(devices) - len(numbers))
    return tuple(number / sum(numbers) for number in numbers)


def _n_fitting(
    settings: EngineSettings,
    header: GgufHeader,
    limits: EngineLimits,
    devices: Sequence[Device],
    shares: Sequence[float],
    part: float,
) -> int:
    """Layers that the devices have room for, with all that belongs to each layer, the output head counted as one."""
    n_layers = check_model(header).hyperparameters.n_layers
    rooms = [max(0.0, part * device.free_bytes - _fixed_bytes(settings, header, limits)) for device in devices]
    room = min(room / share for room, share in zip(rooms, shares, strict=True) if share) if shares else sum(rooms)
    return min(int(room / _layer_bytes(settings, header, limits)), n_layers + 1)


def _layer_bytes(settings: EngineSettings, header: GgufHeader, limits: EngineLimits) -> float:
    """A layer's weights, its part of the cache and of the lanes. llama.cpp puts lanes beside their layer's weights."""
    sizes = check_model(header).hyperparameters
    n_cells = -(-limits.n_kv_cells // _CELLS_STEP) * _CELLS_STEP
    n_kv_values = 2 * n_cells * sizes.n_kv_heads * sizes.head_dim if settings.kv_offload == "on" else 0
    n_lane_values = 0
    if settings.adapter_batching != "grouped":
        n_per_rank = sum(n_in + n_out for n_in, n_out in lora_shapes(header).values()) // sizes.n_layers
        n_lane_values = n_per_rank * settings.max_lora_rank * (settings.lanes + 1)
    return (
        header.size_bytes / (sizes.n_layers + 1)
        + n_kv_values * _VALUE_BYTES[settings.kv_type]
        + n_lane_values * _VALUE_BYTES[settings.lane_type]
    )


def _fixed_bytes(settings: EngineSettings, header: GgufHeader, limits: EngineLimits) -> float:
    """What each device holds once, however many layers: the lanes' results, F32, for each module of a layer.

    Some devices use the graph's own memory for the larger part (see `runtime.llama.lanes.bank`); it counts anyway.
    """
    if settings.adapter_batching == "grouped":
        return 0.0
    n_layers = check_model(header).hyperparameters.n_layers
    shapes = lora_shapes(header).values()
    n_out_of_layer = sum(n_out + settings.max_lora_rank for _, n_out in shapes) // n_layers
    return 4.0 * limits.n_batch * n_out_of_layer
