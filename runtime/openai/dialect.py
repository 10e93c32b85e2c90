"""OpenAI's dialect as one value."""

from __future__ import annotations

from typing import Final

from runtime.openai import openapi, routes
from runtime.openai.responses import routes as responses
from runtime.web.dialect import Dialect

DIALECT: Final = Dialect(
    add_routes=(routes.add_routes, responses.add_routes),
    error_formats=(routes.ERROR_FORMAT,),
    paths=openapi.PATHS,
)
