"""The endpoints of OpenAI's API that a load can be sent to."""

from __future__ import annotations

from typing import Final

PATHS: Final = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
"""The value of ``gemlane bench --endpoint`` -> the path."""
