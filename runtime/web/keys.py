"""What the application and each request carry, under typed keys; there is no other shared state."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from runtime.adapters.service import AdapterService
from runtime.adapters.store import Store
from runtime.config import ServerSettings
from runtime.engines.protocol import Engine
from runtime.observe.events import Observer
from runtime.web.limits import HttpLimits
from runtime.web.streams import Frames
from runtime.web.tokens import TokenCheck

ENGINE: Final = web.AppKey[Engine]("engine", Engine)
ADAPTERS: Final = web.AppKey("adapters", AdapterService)
STORE: Final = web.AppKey("store", Store)
SETTINGS: Final = web.AppKey("settings", ServerSettings)
TOKENS: Final = web.AppKey("tokens", TokenCheck)
OBSERVER: Final = web.AppKey[Observer]("observer", Observer)
LIMITS: Final = web.AppKey("limits", HttpLimits)

REQUEST_ID: Final = web.RequestKey("request_id", str)
"""A UUID, the same in the answer's headers, in error texts, in the log and in the engine."""
STREAM: Final = web.RequestKey("stream", web.StreamResponse)
"""The answer of which bytes have already been sent."""
FRAMES: Final = web.RequestKey[Frames]("frames", Frames)
"""How that stream is written."""
HEADERS: Final = web.RequestKey[dict[str, str]]("headers", dict)
"""More headers of the answer, streamed or whole."""
IGNORED: Final = web.RequestKey[tuple[str, ...]]("ignored", tuple)
"""Keys of the body that changed nothing; the answer names them in the header ``x-gemlane-ignored``."""
