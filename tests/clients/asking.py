"""Plain HTTP beside the clients: what a test needs to see for itself."""

from __future__ import annotations

import json
from typing import Any
from urllib.request import Request, urlopen

from tests.end_to_end.serving import Server

QUESTION = "What is the capital of France?"


def get_json(url: str) -> dict[str, Any]:
    """The JSON object at ``url``."""
    with urlopen(url, timeout=120) as response:  # noqa: S310 - always a server of ours
        return dict(json.load(response))


def answer_of(server: Server, lora: str) -> str:
    """The greedy answer under an adapter, by its name or id."""
    body = {"prompt": QUESTION, "temperature": 0, "max_tokens": 64, "lora": lora}
    request = Request(server.run_url, data=json.dumps(body).encode())  # noqa: S310
    with urlopen(request, timeout=120) as response:  # noqa: S310
        return str(json.load(response)["result"]["response"])
