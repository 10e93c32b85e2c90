"""What every Python program here shares: where the server is, what is asked, and the one JSON object it prints."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

URL = os.environ["GEMLANE_URL"]
MODEL = "@cf/google/gemma-7b-it-lora"
QUESTION = os.environ["GEMLANE_QUESTION"]
LORA = os.environ["GEMLANE_LORA"]
TOKEN = os.environ["GEMLANE_TOKEN"]
GREEDY = {"temperature": 0, "max_tokens": 64}


def error_of(call: Callable[[], Any]) -> dict[str, Any]:
    """The class, HTTP status and text of what ``call`` raises; nothing when it does not."""
    try:
        call()
    except Exception as error:  # noqa: BLE001 - whatever the client throws is what is reported
        status = getattr(error, "status_code", None) or getattr(getattr(error, "response", None), "status_code", None)
        text = f"{error} {getattr(error, 'body', '')}"
        return {"class": type(error).__name__, "status": status, "text": text}
    return {}


def report(distribution: str, **outcome: Any) -> None:
    """Print what was seen."""
    print(json.dumps({"version": version(distribution), **outcome}))
