"""What a token costs as lanes and contexts grow."""

import dataclasses
from contextlib import AsyncExitStack

from scripts.bench.plan import Plan
from scripts.bench.report import Result, Series
from scripts.bench.rounds import Round, Rounds, Work, in_turns
from scripts.bench.sides import gemlane, llama_server

N_LANES = (8, 16, 32, 64)
N_CONTEXT = (512, 1024, 2048, 4096, 8000)
N_SPARE_CELLS = 192
N_PROMPT = 16
FIELDS = ("decode_rate", "decode_cpu_rate", "prompt_rate", "first_token_s")


async def width(plan: Plan) -> Result:
    """8, 16, 32 and 64 lanes: as many clients on as many adapters, and eight clients on eight of them."""
    measured: dict[str, list[Round]] = {}
    memory: list[Series] = []
    n_prompt = plan.n_prompt or N_PROMPT
    for n_lanes in N_LANES:
        setup = dataclasses.replace(plan.setup(n_lanes), n_parallel=n_lanes)
        setup = dataclasses.replace(setup, n_cells=max(plan.n_cells, n_lanes * (n_prompt + plan.n_tokens)))
        async with gemlane(setup, "--lanes", str(n_lanes)) as side:
            works = [
                Work(f"{n_lanes} lanes, {n} adapters of {n} clients", side, tuple(range(n)), n_prompt, plan.n_tokens)
                for n in sorted({8, n_lanes})
            ]
            measured |= (await in_turns(plan, works)).by_work
            memory.append(Series(f"{n_lanes} lanes: peak memory", "GB", (side.peak_bytes() / 1e9,)))
    return Result("width", (*Rounds(measured).series(*FIELDS), *memory), ())


async def depth(plan: Plan) -> Result:
    """Prompts of 512 to 8,000 tokens, one client on the base: how fast they are read, and what a token costs behind."""
    setup = plan.setup(1)
    n_ctx = max(N_CONTEXT) + max(N_SPARE_CELLS, plan.n_tokens)
    setup = dataclasses.replace(setup, n_parallel=1, n_cells=n_ctx)
    async with AsyncExitStack() as stack:
        sides = []
        if plan.sides != "llama-server":
            sides.append(await stack.enter_async_context(gemlane(setup, "--n-ctx", str(n_ctx))))
        if plan.sides != "gemlane":
            sides.append(await stack.enter_async_context(llama_server(setup, n_adapters=0)))
        works = [
            Work(f"{side.name}, {n_tokens} tokens", side, (None,), n_tokens, plan.n_tokens)
            for n_tokens in N_CONTEXT
            if not plan.n_prompt or n_tokens <= plan.n_prompt
            for side in sides
        ]
        rounds = await in_turns(plan, works)
    return Result("depth", rounds.series(*FIELDS[:3]), ())
