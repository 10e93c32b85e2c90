"""``GET /health``: whether requests will be answered, and by what."""

from __future__ import annotations

import dataclasses
from typing import Any, Final

from aiohttp import web

from runtime.adapters.store import Store
from runtime.engines.protocol import Engine
from runtime.errors import ForeignOrigin, Unauthorized
from runtime.web.body import render_json
from runtime.web.keys import ENGINE, STORE, TOKENS
from runtime.web.openapi import ANYTHING, TEXT, answers, operation, path, record

PATHS: Final = {
    "/health": path(
        get=operation("Whether requests will be answered", answers(record({"status": TEXT}), ANYTHING, (405, 503)))
    ),
    "/openapi.json": path(get=operation("This document", answers(ANYTHING, ANYTHING, (401, 403, 405)))),
}


def health_of(engine: Engine, store: Store) -> dict[str, Any]:
    """The engine's state, the model, how adapters share batches and why, and the adapters."""
    ready, stats = engine.ready, engine.stats
    if ready is None:
        return {"status": "starting"}
    return {
        "status": "ok",
        "model": dataclasses.asdict(ready.model),
        "adapter_batching": ready.adapter_batching,
        "adapter_batching_reason": ready.batching_reason,
        "adapters": [{"id": adapter.id, "name": adapter.name} for adapter in store.usable()],
        "requests": {"in_flight": engine.n_in_flight},
        "load": dataclasses.asdict(stats) if stats is not None else None,
    }


def add_routes(app: web.Application) -> None:
    """``/health`` needs no token; without one it shows the status alone."""

    async def health(request: web.Request) -> web.Response:
        state = health_of(request.app[ENGINE], request.app[STORE])
        try:
            request.app[TOKENS].check(request.headers)
        except (Unauthorized, ForeignOrigin):
            state = {"status": state["status"]}
        return web.Response(
            status=200 if state["status"] == "ok" else 503,
            body=render_json(state),
            headers={"Content-Type": "application/json"},
        )

    app.router.add_get("/health", health)
