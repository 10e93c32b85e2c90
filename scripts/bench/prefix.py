"""How soon a request answers whose long beginning was read before, by this server or before its restart."""

import tempfile

import numpy as np

from scripts.bench.asks import Ask, random_prompt
from scripts.bench.plan import Plan, tell, warm
from scripts.bench.report import Claim, Result, Series
from scripts.bench.sides import Side, gemlane

N_SHARED_TOKENS = 1000
N_OWN_TOKENS = 8


async def prefix(plan: Plan) -> Result:
    """First request, second with the same 1,000 tokens before its own eight, third after a restart."""
    setup = plan.setup()
    first, second, restarted = [], [], []
    for repeat in range(plan.repeats):
        generator = np.random.default_rng(repeat)
        shared = random_prompt(generator, N_SHARED_TOKENS)

        async def first_token_s(side: Side, shared: str = shared, generator: np.random.Generator = generator) -> float:
            await warm(side, [0])
            answer = await side.ask(Ask(shared + random_prompt(generator, N_OWN_TOKENS + 1), 2, 0))
            return answer.first_token_s

        with tempfile.TemporaryDirectory() as folder:
            options = ("--prefix-dir", folder)
            async with gemlane(setup, *options) as side:
                first.append(await first_token_s(side))
                second.append(await first_token_s(side))
            async with gemlane(setup, *options) as side:
                restarted.append(await first_token_s(side))
        tell(f"first token: {first[-1]:.2f} s, again {second[-1]:.2f} s, after a restart {restarted[-1]:.2f} s")
    cold = Series("first token, prefix new", "s", tuple(first))
    warm_ = Series("first token, prefix seen", "s", tuple(second))
    kept = Series("first token, prefix seen before a restart", "s", tuple(restarted))
    claims = (
        Claim("first token, prefix seen / new", warm_.over(cold), ceiling=0.05),
        Claim("first token, prefix seen before a restart / new", kept.over(cold), ceiling=0.15),
    )
    return Result("prefix", (cold, warm_, kept), claims)
