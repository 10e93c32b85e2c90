"""``GET /metrics``: the server's state and counts for Prometheus."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from typing import Final

from aiohttp import web

from runtime.engines.protocol import Engine
from runtime.generation import Blend
from runtime.observe.names import NameOf
from runtime.observe.prometheus import CONTENT_TYPE, Exporter
from runtime.observe.table import Snapshot
from runtime.web.keys import ENGINE
from runtime.web.openapi import ANYTHING, TEXT, operation, path

PATHS: Final = {
    "/metrics": path(
        get=operation(
            "Prometheus's text format",
            {
                "200": {"description": "success", "content": {CONTENT_TYPE: {"schema": TEXT}}},
                **{
                    str(status): {"description": "error", "content": {"application/json": {"schema": ANYTHING}}}
                    for status in (401, 403, 405)
                },
            },
        )
    )
}


def snapshot_of(engine: Engine, adapters: Mapping[str, int], name_of: NameOf) -> Snapshot:
    """The state now; ``adapters`` is how many are in each state."""
    stats = engine.stats
    return Snapshot(
        ready=engine.ready,
        stats=stats,
        replicas=engine.replicas,
        n_restarts=engine.n_restarts,
        adapters=adapters,
        running=_adapter_names(stats.running_blends if stats else (), name_of),
        waiting=_adapter_names(stats.waiting_blends if stats else (), name_of),
        version=importlib.metadata.version("gemlane"),
    )


def _adapter_names(blends: tuple[Blend, ...], name_of: NameOf) -> tuple[str, ...]:
    """The adapters of some blends by name, each once."""
    found = (name_of(member.digest) for blend in blends for member in blend.members)
    return tuple(dict.fromkeys(name for name in found if name is not None))


def add_routes(
    app: web.Application, exporter: Exporter, count_adapters: Callable[[], Mapping[str, int]], name_of: NameOf
) -> None:
    """Serve the metrics of ``exporter``; like every path but ``/health`` they need a token where tokens are used."""

    async def metrics(request: web.Request) -> web.Response:
        snapshot = snapshot_of(request.app[ENGINE], count_adapters(), name_of)
        return web.Response(body=exporter.render(snapshot), headers={"Content-Type": CONTENT_TYPE})

    app.router.add_get("/metrics", metrics)
