"""The admin API as one value."""

from __future__ import annotations

from typing import Final

from runtime.admin import openapi, routes
from runtime.web.dialect import Dialect

DIALECT: Final = Dialect(add_routes=(routes.add_routes,), error_formats=(routes.ERROR_FORMAT,), paths=openapi.PATHS)
