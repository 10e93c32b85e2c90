"""What a token costs as more clients ask at once: 1 to 3, and 1 to 128, ours and llama-server's."""

import dataclasses
from contextlib import AsyncExitStack

from scripts.bench.plan import Plan
from scripts.bench.report import Claim, Result
from scripts.bench.rounds import Rounds, Work, in_turns
from scripts.bench.sides import gemlane, llama_server

N_PROMPT = 16
FEW = (1, 2, 3)
COUNTS = (1, 8, 16, 32, 64, 128)


async def measure(plan: Plan, counts: tuple[int, ...]) -> Rounds:
    """The base, each count of clients in turn."""
    n_prompt = plan.n_prompt or N_PROMPT
    n_cells = max(plan.n_cells, max(counts) * (n_prompt + plan.n_tokens))
    setup = dataclasses.replace(plan.setup(), n_parallel=max(counts), n_cells=n_cells)
    async with AsyncExitStack() as stack:
        sides = []
        if plan.sides != "llama-server":
            sides.append(await stack.enter_async_context(gemlane(setup)))
        if plan.sides != "gemlane":
            sides.append(await stack.enter_async_context(llama_server(setup, n_adapters=0)))
        works = [
            Work(f"{side.name}, {count} clients", side, (None,) * count, n_prompt, plan.n_tokens)
            for count in counts
            for side in sides
        ]
        return await in_turns(plan, works)


def against_peer(rounds: Rounds, count: int, floor: float | None = None) -> Claim:
    """Our decode speed over llama-server's, with as many clients."""
    works = (f"gemlane, {count} clients", f"llama-server, {count} clients")
    return rounds.ratio(f"decode, {count} clients / llama-server's", "decode_rate", works, floor=floor)


async def few(plan: Plan) -> Result:
    """Fewer clients than a group of rows that matrices are multiplied with."""
    rounds = await measure(plan, FEW)
    claims = [against_peer(rounds, count, floor=1.0) for count in FEW] if plan.sides == "both" else []
    return Result("few", rounds.series("decode_rate", "decode_cpu_rate", "first_token_s"), tuple(claims))


async def clients(plan: Plan) -> Result:
    """As many as people have; a bound where a token may cost no more than with fewer clients."""
    rounds = await measure(plan, COUNTS)
    claims: list[Claim] = []
    if plan.sides != "llama-server":
        claims += [
            rounds.ratio(
                f"decode, {more} clients / {fewer}",
                "decode_rate",
                (f"gemlane, {more} clients", f"gemlane, {fewer} clients"),
                floor=1.0,
            )
            for fewer, more in ((8, 16), (16, 32), (32, 64), (64, 128))
        ]
    if plan.sides == "both":
        claims += [against_peer(rounds, count) for count in COUNTS]
    return Result("clients", rounds.series("decode_rate", "decode_cpu_rate", "first_token_s"), tuple(claims))
