"""What a change of adapter from one request to the next costs."""

from collections.abc import Callable
from contextlib import AsyncExitStack
from statistics import median

import numpy as np

from scripts.bench.asks import Answer, Ask, random_prompt
from scripts.bench.plan import Plan, tell, warm
from scripts.bench.report import Claim, Result, Series
from scripts.bench.sides import Side

N_PAIRS = 48
CEILING_MS = 1.0


async def measure_swaps(side: Side, seed: int) -> tuple[float, float]:
    """CPU and wall milliseconds that a request costs more when the one before had another adapter.

    Adapters come as 0 0 1 1 0 0 1 1...: every other request changes the adapter, those between repeat it, so
    both kinds meet the same machine. Requests are the smallest there are, and no two prompts are alike.
    """
    generator = np.random.default_rng(seed)
    changed: list[Answer] = []
    repeated: list[Answer] = []
    for pair in range(N_PAIRS):
        for answers in (changed, repeated):
            answers.append(await side.ask(Ask(random_prompt(generator, 2), 1, pair % 2)))

    def difference_ms(measure: Callable[[Answer], float]) -> float:
        return 1e3 * (median(map(measure, changed)) - median(map(measure, repeated)))

    return difference_ms(lambda answer: answer.cpu_s), difference_ms(lambda answer: answer.wall_s)


async def swap(plan: Plan) -> Result:
    """Our swap against llama-server's."""
    setup = plan.setup(2)
    async with AsyncExitStack() as stack:
        sides = await plan.start(stack, setup)
        costs: dict[str, list[tuple[float, float]]] = {side.name: [] for side in sides}
        for side in sides:
            await warm(side, [0, 1])
        for repeat in range(plan.repeats):
            for side in sides:
                cost = await measure_swaps(side, repeat)
                costs[side.name].append(cost)
                tell(f"{side.name}: a swap costs {cost[0]:.1f} ms of CPU, {cost[1]:.1f} ms of time")
    series, claims = [], []
    for name, measured in costs.items():
        cpu_ms, wall_ms = zip(*measured, strict=True)
        series += [
            Series(f"{name}: swap, CPU time", "ms", cpu_ms),
            Series(f"{name}: swap, time", "ms", wall_ms),
        ]
        if name == "gemlane":
            claims.append(Claim("CPU time of a swap", cpu_ms, ceiling=CEILING_MS, unit=" ms"))
    return Result("swap", tuple(series), tuple(claims))
