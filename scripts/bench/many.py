"""A hundred adapters over eight lanes, chosen by a power law, against eight adapters over eight lanes."""

import asyncio
import time
from collections.abc import Iterator

import numpy as np

from scripts.bench.asks import Ask
from scripts.bench.plan import N_CLIENTS, Plan, tell, warm
from scripts.bench.report import Claim, Result, Series
from scripts.bench.sides import Side, gemlane

N_ADAPTERS = 100
N_REQUESTS = 32


def power_law(generator: np.random.Generator, n_requests: int) -> list[int]:
    """Adapter k of 100 is chosen in proportion to 1 / (k + 1)."""
    weights = 1 / np.arange(1, N_ADAPTERS + 1)
    return [int(k) for k in generator.choice(N_ADAPTERS, n_requests, p=weights / weights.sum())]


async def measure_rate(side: Side, asks: list[Ask]) -> tuple[float, float]:
    """Eight clients, each with one request at a time: tokens a second, and tokens a CPU second."""
    pending: Iterator[Ask] = iter(asks)

    async def client() -> int:
        return sum([(await side.ask(ask)).n_tokens for ask in pending])

    start_s, start_cpu_s = time.perf_counter(), side.cpu_s()
    n_tokens = sum(await asyncio.gather(*(client() for _ in range(N_CLIENTS))))
    return n_tokens / (time.perf_counter() - start_s), n_tokens / (side.cpu_s() - start_cpu_s)


async def many(plan: Plan) -> Result:
    """The same server, clients and prompts; only the choice of adapters differs."""
    setup = plan.setup(N_ADAPTERS)
    rates: dict[str, list[tuple[float, float]]] = {"100 adapters, power law": [], "8 adapters": []}
    n_chosen = []
    async with gemlane(setup, "--lanes", "8") as side:
        await warm(side, [None, *range(N_ADAPTERS)])
        for repeat in range(plan.repeats):
            chosen = power_law(np.random.default_rng(repeat), N_REQUESTS)
            n_chosen.append(float(len(set(chosen))))
            turns = [number % N_CLIENTS for number in range(N_REQUESTS)]
            for (name, values), adapters in zip(rates.items(), (chosen, turns), strict=True):
                values.append(await measure_rate(side, plan.asks(np.random.default_rng(repeat), adapters)))
                tell(f"{name}: {values[-1][0]:.2f} tokens/s")
    wall, cpu = (
        {
            name: Series(f"{name}: throughput", unit, tuple(one[index] for one in values))
            for name, values in rates.items()
        }
        for index, unit in enumerate(("tokens/s", "tokens/CPU s"))
    )
    one, other = rates
    claim = Claim(
        "throughput of 100 adapters over 8 lanes / of 8",
        wall[one].over(wall[other]),
        floor=0.9,
        cpu_values=cpu[one].over(cpu[other]),
    )
    different = Series("different adapters among the requests", f"of {N_REQUESTS}", tuple(n_chosen))
    return Result("many", (*wall.values(), *cpu.values(), different), (claim,))
