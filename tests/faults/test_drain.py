"""The server is asked to stop while it answers."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import aiohttp
import pytest

from tests.faults.world import World, ask_openai, faulty_server


@pytest.mark.parametrize(("drain_s", "n_signals"), [(1, 1), (60, 2)], ids=["its time is over", "a second signal"])
async def test_a_running_stream_is_cut_with_a_last_word(
    tiny_model: Path, tiny_adapters: Path, tmp_path: Path, drain_s: int, n_signals: int
) -> None:
    """A stream ends after --drain-s, or at once at the second signal; the status is 0 and the engine is gone."""
    faults = tmp_path / "faults"
    with faulty_server(tiny_model, tiny_adapters, faults, "--drain-s", str(drain_s)) as server:
        async with aiohttp.ClientSession() as session:
            world, has_begun = World(server, faults, session), asyncio.Event()
            await world.until_ready()
            world.arm("step", "slow 0.1")
            long = "capital of capital of"
            stream = asyncio.create_task(
                ask_openai(world, long, stream=True, has_begun=has_begun, max_tokens=400, ignore_eos=True)
            )
            await asyncio.wait_for(has_begun.wait(), 30)
            started = time.monotonic()
            for _ in range(n_signals):
                server.process.send_signal(signal.SIGTERM)
                await asyncio.sleep(0.3)
            assert await asyncio.to_thread(server.process.wait, 20) == 0
            assert drain_s * (n_signals == 1) <= time.monotonic() - started < 15
            end = await stream
            assert end.text
            assert end.error == "the server is shutting down"
    assert not any("Traceback" in line for line in server.log)
