"""Ray itself: joined or started, and the application on it deployed and deleted. Blocking calls, for a thread."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import logging
import os
import secrets
import socket
import uuid
from pathlib import Path
from typing import Any, Final

import ray
from ray import serve
from ray.serve.config import RequestRouterConfig

from convert.cores import n_physical_cores
from runtime.cluster.replica import EngineReplica
from runtime.cluster.values import ReplicaPlan
from runtime.config import Settings
from runtime.errors import ConfigError

_OBJECT_STORE_BYTES: Final = 128 << 20
"""Memory for the object store of a Ray that the server starts: only events pass through it."""
_CONNECT_TIMEOUT_S: Final = 5.0
_STATS_PERIOD_S: Final = 1.0
_HEALTH_PERIOD_S, _HEALTH_TIMEOUT_S = 5.0, 30.0
UPSCALE_DELAY_S, DOWNSCALE_DELAY_S = 10.0, 300.0
"""How long all replicas must be busy, or idle, before their number changes."""
_LOOK_BACK_S: Final = 15.0
_SPARE_REQUESTS: Final = 1000
"""Requests to a replica beside its answers: offers of adapters and questions."""


@dataclasses.dataclass(frozen=True, slots=True)
class Application:
    """What was deployed."""

    name: str
    handle: Any
    """Ray Serve's ``DeploymentHandle``."""
    head: str
    """HOST:PORT of the cluster's head."""


def deploy(settings: Settings, max_in_flight: int, router: type[Any]) -> Application:
    """Join the cluster, or start one, and deploy the replicas, which load the model afterwards.

    Raises:
        ConfigError: there is no such cluster, or it refuses us.
    """
    address = settings.cluster.ray_address
    _check_head(address)
    try:
        _connect(settings)
    except Exception as error:  # Ray raises bare ones
        what = (
            f"--ray-address {address}: the cluster cannot be joined" if address else "--engine ray: Ray does not start"
        )
        raise ConfigError(f"{what}: {' '.join(str(error).split())[:300]}") from error
    serve.start(proxy_location="Disabled", logging_config=_quiet())
    name = f"gemlane-{uuid.uuid4().hex[:8]}"
    engine = dataclasses.replace(
        settings.engine, model=str(Path(settings.engine.model).absolute()), threads=_n_threads(settings)
    )
    plan = ReplicaPlan(
        engine,
        max_in_flight,
        settings.server.state_dir,
        ray.get_runtime_context().get_node_id(),
        importlib.metadata.version("gemlane"),
        settings.server.log_level,
    )
    deployment = serve.deployment(
        EngineReplica,
        name="engine",
        **_scale(settings),
        ray_actor_options={"num_cpus": _n_cpus(settings), "num_gpus": settings.cluster.replica_gpus},
        max_ongoing_requests=max_in_flight + _SPARE_REQUESTS,
        graceful_shutdown_timeout_s=settings.server.request_timeout_s,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=_HEALTH_PERIOD_S,
        health_check_timeout_s=_HEALTH_TIMEOUT_S,
        request_router_config=RequestRouterConfig(
            request_router_class=router, request_routing_stats_period_s=_STATS_PERIOD_S
        ),
        logging_config=_quiet(),
    )
    (handle,) = serve.run_many(
        [serve.RunTarget(deployment.bind(plan), name=name, route_prefix=None)], wait_for_applications_running=False
    )
    _use_our_log()
    return Application(name, handle, ray.get_runtime_context().gcs_address)


def leave(application: Application | None, *, is_ours: bool) -> None:
    """Delete the application, if it can be, and end the connection to Ray, or the Ray that was started for it."""
    if not ray.is_initialized():
        return
    if application is not None and not is_ours:
        serve.delete(application.name)
    ray.shutdown()


def _check_head(address: str) -> None:
    """Refuse an address where nothing listens at once; Ray itself would try for minutes.

    Raises:
        ConfigError: nothing does, or the address has another form than HOST:PORT.
    """
    if address in ("", "auto"):
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), _CONNECT_TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--ray-address {address}: no Ray answers there ({error}); give HOST:PORT of the machine where "
            "ray start --head runs"
        ) from error


def _connect(settings: Settings) -> None:
    """Join the cluster, or start one on loopback with as many processors as the replicas need."""
    _use_our_log()
    quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False, "namespace": "gemlane"}
    if settings.cluster.ray_address:
        ray.init(address=settings.cluster.ray_address, **quiet)
    else:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else Ray would keep one in the home folder
        ray.init(
            address="local",
            num_cpus=max(settings.cluster.replicas, settings.cluster.max_replicas) * _n_cpus(settings),
            object_store_memory=_OBJECT_STORE_BYTES,
            include_dashboard=False,
            **quiet,
        )


def _scale(settings: Settings) -> dict[str, Any]:
    """How many replicas; with room for more, Ray aims at as many requests for each as it decodes at once."""
    cluster = settings.cluster
    if cluster.max_replicas <= cluster.replicas:
        return {"num_replicas": cluster.replicas}
    autoscaling = {
        "min_replicas": cluster.replicas,
        "max_replicas": cluster.max_replicas,
        "target_ongoing_requests": settings.engine.parallel,
        "look_back_period_s": _LOOK_BACK_S,
        "upscale_delay_s": UPSCALE_DELAY_S,
        "downscale_delay_s": DOWNSCALE_DELAY_S,
    }
    return {"autoscaling_config": autoscaling}


def _n_cpus(settings: Settings) -> int:
    """Processors that Ray keeps for each replica: the threads it was given."""
    return settings.engine.threads or 1


def _n_threads(settings: Settings) -> int:
    """Threads of each replica: as given, else a share of this machine where all replicas are on it, else all (0)."""
    if settings.engine.threads or settings.cluster.ray_address:
        return settings.engine.threads
    return max(1, n_physical_cores() // settings.cluster.replicas)


def _quiet() -> dict[str, Any]:
    """Ray Serve's own log without a line for each request."""
    return {"log_level": "WARNING", "enable_access_log": False}


def _use_our_log() -> None:
    """Let warnings of Ray appear in the log of the server, in its format."""
    for name in ("ray", "ray.serve"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    logging.getLogger("ray").setLevel(logging.ERROR)  # its warnings are advice to users of Ray itself
