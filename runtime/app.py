"""The application: the dialects and what they share, over one engine and one registry of adapters."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from runtime.adapters.registry import Registry
from runtime.adapters.uploads import Finetunes
from runtime.cloudflare import binding
from runtime.cloudflare.dialect import DIALECT as CLOUDFLARE
from runtime.config import ServerSettings
from runtime.engines.protocol import Engine
from runtime.observe.engine import ObservedEngine
from runtime.observe.events import Observers
from runtime.observe.log import RequestLog
from runtime.observe.prometheus import Exporter
from runtime.openai.dialect import DIALECT as OPENAI
from runtime.openai.routes import BASE_MODEL
from runtime.playground import routes as playground
from runtime.playground.dialect import DIALECT as PLAYGROUND
from runtime.web import health, metrics, openapi, plain
from runtime.web.dialect import Dialect
from runtime.web.first_request import FirstRequestTimeout
from runtime.web.keys import ENGINE, FINETUNES, FIRST_REQUEST_TIMEOUT, LIMITS, OBSERVER, REGISTRY, SETTINGS, TOKENS
from runtime.web.limits import HttpLimits, limits_of
from runtime.web.middleware import make_middleware, make_prepare_hook
from runtime.web.tokens import load_tokens

DIALECTS: Final[tuple[Dialect, ...]] = (CLOUDFLARE, OPENAI, PLAYGROUND)


def build_app(
    engine: Engine,
    registry: Registry,
    settings: ServerSettings,
    finetunes: Finetunes | None = None,
    limits: HttpLimits | None = None,
) -> web.Application:
    """The whole HTTP side over ``engine`` and ``registry``. Serve it through ``listener.listen``.

    Args:
        engine: answers the requests.
        registry: the adapters that requests may name.
        settings: of the server.
        finetunes: keeps uploaded adapters; without it nothing can be uploaded.
        limits: instead of those in ``settings``.

    Raises:
        ConfigError: tokens are needed and missing, or their file cannot be read.
    """
    tokens, limits = load_tokens(settings), limits or limits_of(settings)
    formats = (plain.OPEN_FORMAT, *(each for dialect in DIALECTS for each in dialect.error_formats), plain.ERROR_FORMAT)
    app = web.Application(middlewares=[make_middleware(formats, tokens)], client_max_size=limits.body_bytes)
    exporter = Exporter(BASE_MODEL, registry.name_of)
    observer = Observers((RequestLog(registry.name_of), exporter))
    app[ENGINE], app[OBSERVER] = ObservedEngine(engine, observer), observer
    app[REGISTRY], app[SETTINGS], app[LIMITS], app[TOKENS] = registry, settings, limits, tokens
    app[FIRST_REQUEST_TIMEOUT] = FirstRequestTimeout(limits.header_s)
    if finetunes is not None:
        app[FINETUNES] = finetunes
        app.on_cleanup.append(_close_finetunes)
    app.on_response_prepare.append(make_prepare_hook(formats))
    health.add_routes(app)
    metrics.add_routes(app, exporter, registry.count_by_state, registry.name_of)
    for dialect in DIALECTS:
        for add_routes in dialect.add_routes:
            add_routes(app)
    app.router.add_get("/", _root)
    openapi.add_routes(app, health.PATHS, metrics.PATHS, *(dialect.paths for dialect in DIALECTS))
    return app


async def _root(request: web.Request) -> web.StreamResponse:
    """``GET /``: a call of the Worker binding's proxy, else the playground."""
    return await (binding.proxied(request) if binding.is_proxied(request) else playground.page(request))


async def _close_finetunes(app: web.Application) -> None:
    await app[FINETUNES].close()
