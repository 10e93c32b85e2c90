"""``GET /health``: the state of the server and its engine. ``GET /ready``: whether requests are answered now."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Final

from aiohttp import web

from runtime.adapters.store import Store
from runtime.adapters.views import AdapterView, set_digest
from runtime.engines.protocol import Engine, Replica
from runtime.engines.states import EngineState, EngineStatus
from runtime.errors import ForeignOrigin, Unauthorized
from runtime.web.body import render_json
from runtime.web.keys import ENGINE, STORE, TOKENS
from runtime.web.openapi import ANYTHING, TEXT, answers, operation, path, record

_JSON: Final = {"Content-Type": "application/json"}

PATHS: Final = {
    "/health": path(get=operation("The state of the server", answers(record({"status": TEXT}), ANYTHING, (405,)))),
    "/ready": path(
        get=operation("Whether requests are answered now", answers(record({"status": TEXT}), ANYTHING, (405, 503)))
    ),
    "/openapi.json": path(get=operation("This document", answers(ANYTHING, ANYTHING, (401, 403, 405)))),
}


def health_of(engine: Engine, store: Store) -> dict[str, Any]:
    """The engine's state, the model, how adapters share batches and why, the adapters, and a digest of their set.

    Servers whose digests are equal have the same adapters.
    """
    ready, stats, status = engine.ready, engine.stats, engine.status
    shown = {"status": _word(status), "engine": dataclasses.asdict(status)}
    if ready is None:
        return shown
    usable = tuple(store.usable())
    return {
        **shown,
        "model": dataclasses.asdict(ready.model),
        "adapter_batching": ready.adapter_batching,
        "adapter_batching_reason": ready.batching_reason,
        "adapters": [_shown(adapter) for adapter in usable],
        "adapters_digest": set_digest(usable),
        "requests": {"in_flight": engine.n_in_flight},
        "load": dataclasses.asdict(stats) if stats is not None else None,
        "replicas": [_shown_replica(replica) for replica in engine.replicas],
    }


def _shown_replica(replica: Replica) -> dict[str, Any]:
    """Where it runs, whether it answers, and how busy it is."""
    stats = replica.stats
    shown = {"name": replica.name, "node": replica.node, "state": replica.status.state}
    return shown | ({"running": stats.n_running, "waiting": stats.n_waiting} if stats is not None else {})


def _shown(adapter: AdapterView) -> dict[str, Any]:
    """An adapter in the list of ``/health``; its warnings, if it has some."""
    shown: dict[str, Any] = {"id": adapter.id, "name": adapter.name}
    return shown | {"warnings": list(adapter.warnings)} if adapter.warnings else shown


def add_routes(app: web.Application) -> None:
    """``/health`` and ``/ready`` need no token; without one they show the status alone.

    ``/health`` answers 200 as long as the web process lives, also without an engine: a supervisor that restarted the
    server for a 503 would only make it load the model again. ``/ready`` is 503 until requests are answered.
    """

    async def health(request: web.Request) -> web.Response:
        return web.Response(body=render_json(_visible(request)), headers=_JSON)

    async def ready(request: web.Request) -> web.Response:
        status = request.app[ENGINE].status
        body = render_json({"status": _word(status)})
        if status.is_serving:
            return web.Response(body=body, headers=_JSON)
        retry_s = math.ceil((status.next_start_in_s or 0.0) + status.last_start_s) or 1
        return web.Response(status=503, body=body, headers={**_JSON, "Retry-After": str(retry_s)})

    app.router.add_get("/health", health)
    app.router.add_get("/ready", ready)


def _word(status: EngineStatus) -> str:
    """The state in one word; ready is ok, as monitors expect."""
    return "ok" if status.state is EngineState.READY else status.state.value


def _visible(request: web.Request) -> dict[str, Any]:
    """What the client may see of the state."""
    state = health_of(request.app[ENGINE], request.app[STORE])
    try:
        request.app[TOKENS].check(request.headers)
    except (Unauthorized, ForeignOrigin):
        return {"status": state["status"]}
    return state
