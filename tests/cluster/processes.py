"""The processes of a Ray that a server started, and what the server says of its replicas."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp

from tests.end_to_end.serving import Server, command_of, descendants

TIMEOUT_S = 90


def pids_of(server: Server, words: bytes) -> list[int]:
    """Descendants of the server whose command line holds these words."""
    return [pid for pid in descendants(server.process.pid) if words in command_of(pid)]


def replica_pids(server: Server) -> list[int]:
    """The processes in which replicas run; each is the parent of an engine."""
    return [int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) for pid in server.engine_pids()]


def is_alive(pid: int) -> bool:
    """Whether such a process runs; one that has ended and waits for its parent does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


async def health_of(session: aiohttp.ClientSession, server: Server) -> dict[str, Any]:
    """What ``/health`` says."""
    async with session.get(f"{server.url}/health") as response:
        return dict(json.loads(await response.read()))


async def eventually(
    session: aiohttp.ClientSession,
    server: Server,
    check: Callable[[dict[str, Any]], bool],
    timeout_s: float = TIMEOUT_S,
) -> dict[str, Any]:
    """Wait until ``/health`` passes the check."""
    async with asyncio.timeout(timeout_s):
        while True:
            health = await health_of(session, server)
            if check(health):
                return health
            await asyncio.sleep(0.1)


async def wait_for_replicas(session: aiohttp.ClientSession, server: Server, n_ready: int) -> list[dict[str, Any]]:
    """Wait until as many replicas answer, and no other is known."""
    wanted = ["ready"] * n_ready
    health = await eventually(
        session, server, lambda health: [replica["state"] for replica in health.get("replicas", [])] == wanted
    )
    return list(health["replicas"])
