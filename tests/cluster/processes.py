"""The processes of a Ray that a server started, and what the server says of its replicas."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.end_to_end.serving import Server, command_of, descendants, environment

TIMEOUT_S = 90
RAY = (sys.executable, "-m", "ray.scripts.scripts")
"""The command ``ray``."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """A Ray of one machine that no server started."""

    process: subprocess.Popen[bytes]
    address: str

    def engine_pids(self) -> list[int]:
        """Engine processes of all servers on it."""
        return [pid for pid in descendants(self.process.pid) if b"runtime.engine" in command_of(pid).split(b"\0")]


@contextlib.contextmanager
def ray_cluster(monkeypatch: pytest.MonkeyPatch, n_processors: int) -> Iterator[Cluster]:
    """A Ray on loopback with token authentication, whose token this process and servers have in their environment."""
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # else it takes the machine's address for 127.0.0.1
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        process = subprocess.Popen(
            [
                *RAY, "start", "--head", "--node-ip-address", "127.0.0.1", "--port", str(port), "--temp-dir", folder,
                "--num-cpus", str(n_processors), "--object-store-memory", "100000000",
                "--include-dashboard", "false", "--disable-usage-stats", "--block",
            ],
            env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            wait_until_it_listens(process, port)
            yield Cluster(process, f"127.0.0.1:{port}")
        finally:
            everything = [*descendants(process.pid)]
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=20)
            for pid in wait_for_end(everything, 5):
                os.kill(pid, signal.SIGKILL)
            process.wait(timeout=20)


def wait_until_it_listens(process: subprocess.Popen[bytes], port: int) -> None:
    """Wait for Ray's head."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        assert process.poll() is None
        try:
            return socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.2)


def wait_for_end(pids: Sequence[int], timeout_s: float) -> list[int]:
    """Those that run after so long; none as soon as all have ended."""
    deadline = time.monotonic() + timeout_s
    while (left := [pid for pid in pids if is_alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


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
