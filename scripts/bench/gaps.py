"""How long running streams stall while a long prompt is read."""

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from itertools import pairwise

import numpy as np

from scripts.bench.asks import Ask, random_prompt
from scripts.bench.plan import Plan, tell, warm
from scripts.bench.report import Claim, Result, Series
from scripts.bench.sides import Side

N_STREAMS = 4
N_STREAM_TOKENS = 800  # more than a stream gets while the prompt is read
N_SETTLED = 8  # tokens that every stream has had before the prompt comes
N_PROMPT_TOKENS = 2000
STEP_BUDGET_MS = 250


async def follow(side: Side, ask: Ask, moments: list[float]) -> None:
    """Reads a stream and notes the moment of every token."""
    async for piece in side.stream(ask):
        if piece.text:
            moments.append(time.perf_counter())  # noqa: PERF401 -- it is read meanwhile


async def measure_gaps(side: Side, seed: int) -> tuple[float, float]:
    """Sends a long prompt while streams run; returns their gaps (p99) and the prompt's wait, in seconds.

    Ours runs as many adapters as requests. llama-server gets one for all: with more, a stream waits until those of
    another adapter have ended, whatever their length.

    Counted are the gaps between a stream's tokens that fall, even in part, in the time the prompt is read.
    """
    generator = np.random.default_rng(seed)
    moments: list[list[float]] = [[] for _ in range(N_STREAMS)]
    *adapters, last = range(N_STREAMS + 1) if side.name == "gemlane" else [0] * (N_STREAMS + 1)
    asks = [Ask(random_prompt(generator, 16), N_STREAM_TOKENS, adapter) for adapter in adapters]
    streams = [asyncio.create_task(follow(side, *each)) for each in zip(asks, moments, strict=True)]
    try:
        await until(streams, lambda: min(map(len, moments)) >= N_SETTLED)
        start_s = time.perf_counter()
        answer = await side.ask(Ask(random_prompt(generator, N_PROMPT_TOKENS), 1, last))
        end_s = start_s + answer.first_token_s
        await until(streams, lambda: min(times[-1] for times in moments) >= end_s)
    finally:
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*streams, return_exceptions=True)
    gaps = [
        later - earlier
        for times in moments
        for earlier, later in pairwise(times)
        if later > start_s and earlier < end_s
    ]
    return float(np.percentile(gaps, 99)), answer.first_token_s


async def until(streams: list[asyncio.Task[None]], is_reached: Callable[[], bool]) -> None:
    """Waits for a state of the streams, or for the first of them to end; raises what it raised."""
    while not is_reached():
        ended, _ = await asyncio.wait(streams, timeout=0.05, return_when=asyncio.FIRST_COMPLETED)
        if ended:
            ended.pop().result()
            return


async def gaps(plan: Plan) -> Result:
    """Ours against llama-server's."""
    setup = plan.setup()
    async with AsyncExitStack() as stack:
        sides = await plan.start(stack, setup, "--step-budget-ms", str(STEP_BUDGET_MS))
        measured: dict[str, list[tuple[float, float]]] = {side.name: [] for side in sides}
        for side in sides:
            await warm(side, [None, *range(N_STREAMS + 1)])
        for repeat in range(plan.repeats):
            for side in sides:
                gap_s, first_s = await measure_gaps(side, repeat)
                measured[side.name].append((gap_s, first_s))
                tell(f"{side.name}: gaps of {1e3 * gap_s:.0f} ms (p99), prompt read in {first_s:.1f} s")
    series, claims = [], []
    for name, values in measured.items():
        gaps_ms = tuple(1e3 * gap_s for gap_s, _ in values)
        series.append(Series(f"{name}: gap between tokens, p99, while reading", "ms", gaps_ms))
        series.append(Series(f"{name}: first token of the long prompt", "s", tuple(first for _, first in values)))
        if name == "gemlane":
            claims.append(Claim("gap between tokens, p99", gaps_ms, ceiling=2 * STEP_BUDGET_MS, unit=" ms"))
    return Result("gaps", tuple(series), tuple(claims))
