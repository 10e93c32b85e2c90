"""What ends, and when, once Ray's head or the server is gone."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path

import aiohttp
import pytest

from tests.cluster.conftest import REPLICAS
from tests.cluster.processes import eventually, is_alive, pids_of, ray_cluster, wait_for_end
from tests.end_to_end.serving import Server, ask_text, command_of, descendants, serving
from tests.tiny_gemma.facts import ANSWERS, QUESTIONS

ONE = ("--engine", "ray", "--replicas", "1", "--parallel", "4", "--lanes", "4")


async def test_the_server_ends_after_its_own_ray_has_lost_its_head(
    tiny_model: Path, tiny_adapters: Path, session: aiohttp.ClientSession
) -> None:
    """Without the head requests end with 503; then the server ends and says to start it again."""
    with serving(tiny_model, tiny_adapters, *REPLICAS) as server:
        (head,) = pids_of(server, b"gcs/gcs_server")
        ours = [pid for pid in pids_of(server, b"") if pid != server.process.pid]
        await ends_without_head(session, server, head)
        assert server.log[-1].startswith("gemlane: the Ray of this server does not answer any more")
        assert server.log[-1].endswith("start the server again")
        assert wait_for_end(ours, 90) == []


async def test_the_server_ends_after_the_cluster_has_lost_its_head(
    tiny_model: Path, tiny_adapters: Path, session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a cluster that others started the server's last line names the head and what to start again."""
    with (
        ray_cluster(monkeypatch, n_processors=1) as cluster,
        serving(tiny_model, tiny_adapters, *ONE, "--ray-address", cluster.address) as server,
    ):
        (head,) = [pid for pid in descendants(cluster.process.pid) if b"gcs/gcs_server" in command_of(pid)]
        await ends_without_head(session, server, head)
        assert server.log[-1].startswith(f"gemlane: the head of the Ray cluster at {cluster.address} does not answer")
        assert "ray start --head" in server.log[-1]


async def ends_without_head(session: aiohttp.ClientSession, server: Server, head: int) -> None:
    """Kill the head; /ready is 503 and requests end with 503, then the server ends with status 2 by itself."""
    os.kill(head, signal.SIGKILL)
    began = time.monotonic()
    health = await eventually(session, server, lambda health: health["status"] == "failed")
    noticed_s = time.monotonic() - began
    assert "the head of the Ray cluster at 127.0.0.1:" in health["engine"]["reason"]
    async with session.get(f"{server.url}/ready") as response:
        assert response.status == 503
    async with session.post(server.run_url, data=json.dumps({"prompt": QUESTIONS[0]})) as response:
        assert response.status == 503
    assert server.process.wait(timeout=60) == 2
    ended_s = time.monotonic() - began
    print(f"head lost: 503 after {noticed_s:.1f} s, the server's end after {ended_s:.1f} s")
    assert 4 < noticed_s < 9
    assert 15 < ended_s < 58  # after 60 s Ray itself ends the process, with status 1


def test_a_killed_server_leaves_no_ray_behind(tiny_model: Path, tiny_adapters: Path) -> None:
    """The processes of a Ray of the server's own end with a server that is killed."""
    with serving(tiny_model, tiny_adapters, *REPLICAS) as server:
        ours = [pid for pid in pids_of(server, b"") if pid != server.process.pid]
        assert len(ours) > 4
        server.process.kill()
        server.process.wait()
        assert wait_for_end(ours, 120) == []  # two of Ray's agents look for its head for a minute first


async def test_a_killed_server_frees_the_cluster(
    tiny_model: Path, tiny_adapters: Path, session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replicas of a killed server end after a minute; the next server gets the only processor that they had."""
    with ray_cluster(monkeypatch, n_processors=1) as cluster:
        flags = (*ONE, "--ray-address", cluster.address)
        with serving(tiny_model, tiny_adapters, *flags) as server:
            engines = cluster.engine_pids()
            assert len(engines) == 1
            server.process.kill()
            server.process.wait()
            began = time.monotonic()
            await asyncio.sleep(45)
            assert all(map(is_alive, engines))
            assert wait_for_end(engines, 60) == []
            print(f"server killed: its replica ended after {time.monotonic() - began:.1f} s")
        with serving(tiny_model, tiny_adapters, *flags) as server:
            assert await ask_text(session, server, QUESTIONS[0]) == ANSWERS["base"][QUESTIONS[0]]
            assert server.stop() == 0
        assert wait_for_end(cluster.engine_pids(), 20) == []
