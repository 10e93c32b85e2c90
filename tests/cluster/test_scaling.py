"""More replicas while all are busy, fewer when they are idle; no answer is cut by either."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from runtime.cluster import application
from runtime.cluster.engine import RayEngine
from runtime.config import ClusterSettings, EngineSettings, ServerSettings, Settings
from runtime.engines.protocol import GenerationEvent
from runtime.generation import GenerationRequest, Prompt, Sampling, Segment
from runtime.messages import Finished

pytestmark = pytest.mark.filterwarnings("default")  # Ray's own
N_TOKENS = 300


async def ask(engine: RayEngine, name: str) -> list[GenerationEvent]:
    """The events of one long answer."""
    prompt = Prompt((Segment("capital of capital of", has_control_tokens=True),))
    request = GenerationRequest(name, prompt, N_TOKENS, Sampling(temperature=0, ignores_end=True))
    async with engine.generate(request) as events:
        return [event async for event in events]


async def test_replicas_come_with_load_and_go_without_cutting_an_answer(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight clients of a replica with two places bring a second one; with one client one of them drains and ends."""
    monkeypatch.setattr(application, "UPSCALE_DELAY_S", 1.0)
    monkeypatch.setattr(application, "DOWNSCALE_DELAY_S", 2.0)
    settings = EngineSettings(model=str(tiny_model), threads=1, parallel=2, adapter_batching="grouped")
    engine = RayEngine(Settings(settings, ServerSettings(), ClusterSettings("ray", 1, 2)), max_in_flight=64)
    await engine.start()
    ends: list[GenerationEvent] = []
    n_clients = 8

    async def client(number: int) -> None:
        while number < n_clients:
            events = await ask(engine, f"{number}-{len(ends)}")
            ends.append(events[-1])

    async def wait_for(n_ready: int) -> None:
        async with asyncio.timeout(90):
            while True:
                if sum(replica.ready is not None for replica in engine.replicas) == n_ready:
                    return
                await asyncio.sleep(0.2)

    try:
        clients = [asyncio.create_task(client(number)) for number in range(n_clients)]
        await wait_for(2)
        n_clients = 1
        await wait_for(1)
        n_clients = 0
        await asyncio.gather(*clients)
    finally:
        await engine.stop()
    assert len(ends) > 8
    assert all(isinstance(end, Finished) and end.usage.n_completion_tokens == N_TOKENS for end in ends)
