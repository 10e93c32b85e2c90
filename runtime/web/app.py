"""The application put together: which rooms open onto the street."""

from __future__ import annotations

from aiohttp import web

from runtime.adapters.ingest import Finetunes
from runtime.adapters.registry import Registry
from runtime.client import Engine
from runtime.cloudflare import binding, catalogue
from runtime.cloudflare import description as cloudflare_paths
from runtime.cloudflare import finetunes as finetune_routes
from runtime.cloudflare import routes as cloudflare
from runtime.config import ServerSettings
from runtime.openai import description as openai_paths
from runtime.openai import routes as openai
from runtime.web import description, health, plain
from runtime.web.keys import ENGINE, FINETUNES, LIMITS, REGISTRY, SETTINGS, SILENCE
from runtime.web.limits import Limits, limits_of
from runtime.web.middleware import make_middleware, make_prepare_hook
from runtime.web.silence import Silence
from runtime.web.tokens import load_tokens


def build_app(
    engine: Engine,
    registry: Registry,
    settings: ServerSettings,
    finetunes: Finetunes | None = None,
    limits: Limits | None = None,
) -> web.Application:
    """The whole HTTP side over ``engine`` and ``registry``; without ``finetunes`` none can be uploaded.

    ``limits`` are those of the settings unless they are given. Serve it through ``door.open_door``.

    Raises:
        ConfigError: tokens are needed and missing, or their file cannot be read.
    """
    tokens, limits = load_tokens(settings), limits or limits_of(settings)
    faces = (plain.OPEN_FACE, binding.FACE, cloudflare.FACE, openai.FACE, plain.FACE)
    app = web.Application(middlewares=[make_middleware(faces, tokens)], client_max_size=limits.body_bytes)
    app[ENGINE], app[REGISTRY], app[SETTINGS], app[LIMITS] = engine, registry, settings, limits
    app[SILENCE] = Silence(limits.header_s)
    if finetunes is not None:
        app[FINETUNES] = finetunes
        app.on_cleanup.append(_close_finetunes)
    app.on_response_prepare.append(make_prepare_hook(faces))
    health.add_routes(app, tokens)
    binding.add_routes(app)  # before the model's route, which would claim ``run/proxy``
    cloudflare.add_routes(app)
    catalogue.add_routes(app)
    finetune_routes.add_routes(app)
    openai.add_routes(app)
    description.add_routes(app, health.PATHS, cloudflare_paths.PATHS, openai_paths.PATHS)
    return app


async def _close_finetunes(app: web.Application) -> None:
    await app[FINETUNES].close()
