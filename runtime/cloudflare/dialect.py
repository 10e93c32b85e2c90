"""Cloudflare's dialect as one value."""

from __future__ import annotations

from typing import Final

from runtime.cloudflare import binding, catalogue, finetunes, gateway, openapi, routes
from runtime.web.dialect import Dialect

DIALECT: Final = Dialect(
    # The binding comes first: the pattern of the model's route covers ``run/proxy`` too.
    add_routes=(
        binding.add_routes,
        routes.add_routes,
        gateway.add_routes,
        catalogue.add_routes,
        finetunes.add_routes,
    ),
    error_formats=(binding.ERROR_FORMAT, routes.ERROR_FORMAT, gateway.ERROR_FORMAT),
    paths=openapi.PATHS,
)
