"""Clients at once on eight adapters and on one: tokens a second, and the last first token."""

import time
from contextlib import AsyncExitStack
from dataclasses import dataclass

import numpy as np

from scripts.bench.plan import Plan, tell, warm
from scripts.bench.report import Claim, Result, Series
from scripts.bench.sides import Side

N_ADAPTERS = 8
MIXED, SHARED = "8 adapters", "1 shared adapter"


@dataclass(frozen=True, slots=True)
class Round:
    """Requests sent together; rates in tokens a second and a CPU second, and the last first token."""

    rate: float
    cpu_rate: float
    first_token_s: float
    prompt_rate: float
    """Prompt tokens a second, until every request has its first token."""


async def measure_round(plan: Plan, side: Side, adapters: list[int], seed: int) -> Round:
    """Sends one request for each adapter at once; both sides get the same prompts for the same seed."""
    asks = plan.asks(np.random.default_rng(seed), adapters)
    start_s, start_cpu_s = time.perf_counter(), side.cpu_s()
    answers = await side.ask_all(asks)
    wall_s, cpu_s = time.perf_counter() - start_s, side.cpu_s() - start_cpu_s
    n_tokens = sum(answer.n_tokens for answer in answers)
    first_token_s = max(answer.first_token_s for answer in answers)
    return Round(n_tokens / wall_s, n_tokens / cpu_s, first_token_s, len(asks) * plan.n_tokens / first_token_s)


async def throughput(plan: Plan) -> Result:
    """Mixed work against shared, ours against llama-server's, in turns."""
    setup = plan.setup(N_ADAPTERS)
    clients = range(plan.n_clients)
    work_of = {MIXED: [client % N_ADAPTERS for client in clients], SHARED: [0 for _ in clients]}
    rounds: dict[tuple[str, str], list[Round]] = {}
    async with AsyncExitStack() as stack:
        sides = await plan.start(stack, setup)
        for side in sides:
            await warm(side, [None, *range(N_ADAPTERS)])
        for repeat in range(plan.repeats):
            for seed, (work, adapters) in enumerate(work_of.items(), start=2 * repeat):
                for side in sides:
                    one = await measure_round(plan, side, adapters, seed)
                    rounds.setdefault((side.name, work), []).append(one)
                    tell(f"{side.name}, {work}: {one.rate:.2f} tokens/s, last first {one.first_token_s:.1f} s")
        peaks = [Series(f"{side.name}: peak memory", "GB", (side.peak_bytes() / 1e9,)) for side in sides]
    return conclude(rounds, peaks)


def conclude(rounds: dict[tuple[str, str], list[Round]], peaks: list[Series]) -> Result:
    """The series and claims of all rounds."""
    rate, cpu_rate, first, prompt_rate = (
        {
            key: Series(f"{key[0]}, {key[1]}: {name}", unit, tuple(getattr(one, field) for one in values))
            for key, values in rounds.items()
        }
        for field, name, unit in (
            ("rate", "throughput", "tokens/s"),
            ("cpu_rate", "throughput", "tokens/CPU s"),
            ("first_token_s", "slowest first token", "s"),
            ("prompt_rate", "prompts", "tokens/s"),
        )
    )
    mixed, shared = (("gemlane", work) for work in (MIXED, SHARED))
    peer_mixed, peer_shared = (("llama-server", work) for work in (MIXED, SHARED))

    def compare(text: str, one: tuple[str, str], other: tuple[str, str], floor: float) -> Claim:
        return Claim(text, rate[one].over(rate[other]), floor=floor, cpu_values=cpu_rate[one].over(cpu_rate[other]))

    claims = []
    if mixed in rounds:
        claims.append(compare("throughput of 8 adapters / of 1 shared", mixed, shared, 0.95))
    if mixed in rounds and peer_mixed in rounds:
        claims += [
            compare("throughput of 8 adapters / llama-server's of 1 shared", mixed, peer_shared, 0.95),
            compare("throughput of 8 adapters / llama-server's", mixed, peer_mixed, 1.4),
            compare("throughput of 1 shared / llama-server's", shared, peer_shared, 0.95),
            Claim("slowest first token / llama-server's", first[mixed].over(first[peer_mixed]), ceiling=0.35),
        ]
    series = [values for key in rounds for values in (rate[key], cpu_rate[key], first[key], prompt_rate[key])]
    return Result("throughput", tuple(series + peaks), tuple(claims))
