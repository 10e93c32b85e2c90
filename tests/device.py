"""The device that tests run on, from the same environment variables as the server's settings; else the processor."""

from __future__ import annotations

import os
from typing import Any

from runtime.llama.devices import Placement, add_rpc_servers, choose

_NAMES = ("gpu_layers", "device", "rpc")


def device_settings() -> dict[str, Any]:
    """What ``EngineSettings`` have to be so that the engine uses the device."""
    values = {name: os.environ.get(f"GEMLANE_{name.upper()}") for name in _NAMES}
    return {name: value for name, value in values.items() if value is not None}


def placement() -> Placement:
    """Where a model of two layers goes, llama.cpp having been started."""
    settings = device_settings()
    n_layers = {"auto": "0", "all": "3"}.get(settings.get("gpu_layers", "0"), settings.get("gpu_layers", "0"))
    if n_layers == "0":
        return Placement()
    add_rpc_servers(settings.get("rpc", ""))
    return Placement(int(n_layers), tuple(choose(settings.get("device", ""))))


def is_on_processor() -> bool:
    """Whether the processor computes every layer."""
    return device_settings().get("gpu_layers", "0") in {"0", "auto"}
