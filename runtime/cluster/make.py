"""Makes the engine on Ray; Ray is imported only if it is wanted, and after its listening address is set."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable

from runtime.config import Settings
from runtime.engines.protocol import ManagedEngine
from runtime.errors import ConfigError


def make_engine(settings: Settings, max_in_flight: int, on_loading: Callable[[float], None]) -> ManagedEngine:
    """Replicas on Ray; not started yet.

    Raises:
        ConfigError: Ray is not installed.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if not settings.cluster.ray_address:
        # Switched off, it makes every process of a Ray listen on loopback alone. Ray reads it when it is imported.
        # Source: ray/_private/services.py, get_node_ip_address.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    try:
        module = importlib.import_module("runtime.cluster.engine")
    except ModuleNotFoundError as error:
        raise ConfigError(f"--engine ray: {error.name} is not installed; pip install 'gemlane[cluster]'") from error
    engine: ManagedEngine = module.RayEngine(settings, max_in_flight=max_in_flight, on_loading=on_loading)
    return engine
