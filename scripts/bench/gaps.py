"""How fast a long prompt is read while streams run, and how long those stall."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from itertools import pairwise

import numpy as np

from scripts.bench.asks import Ask, random_prompt
from scripts.bench.plan import Plan, tell, warm
from scripts.bench.report import Claim, Result, Series
from scripts.bench.sides import Side, gemlane, llama_server

N_STREAMS = 4
N_STREAM_TOKENS = 800  # more than a stream gets while the prompt is read
N_SETTLED = 8  # tokens that every stream has had before the prompt comes
N_PROMPT_TOKENS = 2000
MAX_GAP_MS = 500
SHARED, MIXED = "gemlane, 1 shared adapter", "gemlane, 5 adapters"


async def follow(side: Side, ask: Ask, moments: list[float]) -> None:
    """Reads a stream and notes the moment of every token."""
    async for piece in side.stream(ask):
        if piece.text:
            moments.append(time.perf_counter())  # noqa: PERF401 -- it is read meanwhile


async def measure_gaps(side: Side, adapters: Sequence[int], n_prompt: int, seed: int) -> tuple[float, float]:
    """Sends a long prompt while streams run; returns their gaps (p99) and the prompt's wait, in seconds.

    The last of the adapters is the prompt's. Counted are the gaps between a stream's tokens that fall, even in part, in
    the time the prompt is read.
    """
    generator = np.random.default_rng((seed, len(set(adapters))))
    moments: list[list[float]] = [[] for _ in range(N_STREAMS)]
    asks = [Ask(random_prompt(generator, 16), N_STREAM_TOKENS, adapter) for adapter in adapters[:-1]]
    streams = [asyncio.create_task(follow(side, *each)) for each in zip(asks, moments, strict=True)]
    try:
        await until(streams, lambda: min(map(len, moments)) >= N_SETTLED)
        start_s = time.perf_counter()
        answer = await side.ask(Ask(random_prompt(generator, n_prompt), 1, adapters[-1]))
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
    """Four streams and a prompt of 2,000 tokens: all on one adapter, ours and llama-server's; ours on five.

    llama-server has just that one adapter: with more, a stream waits until those of another have ended.
    """
    setup, n_prompt = plan.setup(), plan.n_prompt or N_PROMPT_TOKENS
    peer = "llama-server with that one, 1 shared adapter"
    one, five = [0] * (N_STREAMS + 1), list(range(N_STREAMS + 1))
    works: dict[str, tuple[Side, list[int]]] = {}
    async with AsyncExitStack() as stack:
        if plan.sides != "llama-server":
            side = await stack.enter_async_context(gemlane(setup))
            works |= {SHARED: (side, one), MIXED: (side, five)}
        if plan.sides != "gemlane":
            works[peer] = (await stack.enter_async_context(llama_server(setup, n_adapters=1)), one)
        measured: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
        for side, adapters in works.values():
            await warm(side, [None, *sorted(set(adapters))])
        for repeat in range(plan.repeats):
            for name in list(works)[:: -1 if repeat % 2 else 1]:
                gap_s, first_s = await measure_gaps(*works[name], n_prompt, repeat)
                measured[name].append((1e3 * gap_s, n_prompt / first_s))
                tell(f"{name}: gaps of {1e3 * gap_s:.0f} ms (p99), prompt read in {first_s:.1f} s")
    return conclude(measured, peer)


def conclude(measured: dict[str, list[tuple[float, float]]], peer: str) -> Result:
    """The series and claims of all rounds: gaps in milliseconds, and prompt tokens a second."""
    gap, speed = (
        {
            name: Series(f"{name}: {title}", unit, tuple(one[index] for one in values))
            for name, values in measured.items()
        }
        for index, title, unit in (
            (0, "gap between tokens, p99, while reading", "ms"),
            (1, "prompt beside streams", "tokens/s"),
        )
    )
    claims = [
        Claim(f"gap between tokens, p99, {name}", gap[name].values, ceiling=MAX_GAP_MS, unit=" ms")
        for name in (SHARED, MIXED)
        if name in gap
    ]
    if SHARED in speed and peer in speed:
        claims += [
            Claim("prompt beside streams, 1 shared / llama-server's", speed[SHARED].over(speed[peer]), floor=0.8),
            Claim("prompt beside streams, 5 adapters / its 1 shared", speed[MIXED].over(speed[peer])),
        ]
    return Result("gaps", (*gap.values(), *speed.values()), tuple(claims))
