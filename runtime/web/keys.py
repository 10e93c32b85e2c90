"""What the application and each request carry, under typed keys; there is no other shared state."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from runtime.adapters.ingest import Finetunes
from runtime.adapters.registry import Registry
from runtime.client import Engine
from runtime.config import ServerSettings
from runtime.web.limits import Limits
from runtime.web.silence import Silence
from runtime.web.streams import Frames

ENGINE: Final = web.AppKey[Engine]("engine", Engine)
REGISTRY: Final = web.AppKey("registry", Registry)
FINETUNES: Final = web.AppKey("finetunes", Finetunes)
"""Absent where there is no folder to keep them in."""
SETTINGS: Final = web.AppKey("settings", ServerSettings)
LIMITS: Final = web.AppKey("limits", Limits)
SILENCE: Final = web.AppKey("silence", Silence)

REQUEST_ID: Final = web.RequestKey("request_id", str)
"""A UUID, the same in the answer's headers, in error texts, in the log and in the engine."""
STREAM: Final = web.RequestKey("stream", web.StreamResponse)
"""The answer of which bytes have already been sent."""
FRAMES: Final = web.RequestKey[Frames]("frames", Frames)
"""How that stream is written."""
