"""The application: the dialects and what they share, over one engine and its adapters."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from runtime.adapters.service import AdapterService
from runtime.admin.dialect import DIALECT as ADMIN
from runtime.cloudflare import binding
from runtime.cloudflare.dialect import DIALECT as CLOUDFLARE
from runtime.config import ServerSettings
from runtime.engines.protocol import Engine
from runtime.observe.engine import ObservedEngine
from runtime.observe.events import Observers
from runtime.observe.log import RequestLog
from runtime.observe.prometheus import Exporter
from runtime.openai.dialect import DIALECT as OPENAI
from runtime.openai.models import BASE_MODEL
from runtime.playground import routes as playground
from runtime.playground.dialect import DIALECT as PLAYGROUND
from runtime.web import health, metrics, openapi, plain
from runtime.web.dialect import Dialect
from runtime.web.keys import ADAPTERS, ENGINE, LIMITS, OBSERVER, SETTINGS, STORE, TOKENS
from runtime.web.limits import HttpLimits, limits_of
from runtime.web.middleware import make_middleware, make_prepare_hook
from runtime.web.tokens import TokenCheck

DIALECTS: Final[tuple[Dialect, ...]] = (CLOUDFLARE, OPENAI, ADMIN, PLAYGROUND)


def build_app(
    engine: Engine,
    adapters: AdapterService,
    settings: ServerSettings,
    limits: HttpLimits | None = None,
) -> web.Application:
    """The whole HTTP side over ``engine`` and ``adapters``. Serve it through ``listener.listen``.

    Args:
        engine: answers the requests.
        adapters: those that requests may name, and what brings more of them.
        settings: those of the server.
        limits: instead of those in ``settings``.

    Raises:
        ConfigError: tokens are needed and missing, or their file cannot be read.
    """
    tokens, limits = TokenCheck(settings), limits or limits_of(settings)
    formats = (plain.OPEN_FORMAT, *(each for dialect in DIALECTS for each in dialect.error_formats), plain.ERROR_FORMAT)
    app = web.Application(middlewares=[make_middleware(formats, tokens)], client_max_size=limits.body_bytes)
    store = adapters.store
    exporter = Exporter(BASE_MODEL, store.name_of)
    observer = Observers((RequestLog(store.name_of), exporter))
    app[ENGINE], app[OBSERVER] = ObservedEngine(engine, observer), observer
    app[SETTINGS], app[LIMITS], app[TOKENS] = settings, limits, tokens
    app[ADAPTERS], app[STORE] = adapters, store
    app.on_response_prepare.append(make_prepare_hook(formats, tokens))
    health.add_routes(app)
    metrics.add_routes(app, exporter, store.count_by_state, store.name_of)
    for dialect in DIALECTS:
        for add_routes in dialect.add_routes:
            add_routes(app)
    app.router.add_get("/", _root)
    openapi.add_routes(app, health.PATHS, metrics.PATHS, *(dialect.paths for dialect in DIALECTS))
    return app


async def _root(request: web.Request) -> web.StreamResponse:
    """``GET /``: a call of the Worker binding's proxy, else the playground."""
    return await (binding.proxied(request) if binding.is_proxied(request) else playground.page(request))
