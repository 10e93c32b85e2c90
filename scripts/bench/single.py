"""One client: the base and one adapter against llama-server, and what an adapter and lanes cost."""

import dataclasses
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

from scripts.bench.plan import Plan
from scripts.bench.report import Claim, Result
from scripts.bench.rounds import Rounds, Work, in_turns
from scripts.bench.sides import Side, gemlane, llama_server

N_PROMPT = 384
OURS_BASE, OURS_ADAPTER = "gemlane, base", "gemlane, one adapter"
FIELDS = ("prompt_rate", "decode_rate", "prompt_cpu_rate", "decode_cpu_rate")


def work(plan: Plan, name: str, side: Side, adapter: int | None) -> Work:
    """One request at a time."""
    return Work(name, side, (adapter,), plan.n_prompt or N_PROMPT, plan.n_tokens)


def against(rounds: Rounds, what: str, mine: str, theirs: str) -> list[Claim]:
    """Our prompt and decode speed over llama-server's."""
    works = (mine, theirs)
    return [
        rounds.ratio(f"prompt, {what} / llama-server's", "prompt_rate", works, floor=1.0),
        rounds.ratio(f"decode, {what} / llama-server's", "decode_rate", works, floor=1.0),
        rounds.alike(f"equal answers, {what} and llama-server's", works),
    ]


async def base(plan: Plan) -> Result:
    """The base model: our server with adapters in its folder, llama-server without any."""
    setup = plan.setup()
    peer = "llama-server without adapters, base"
    async with AsyncExitStack() as stack:
        works = []
        if plan.sides != "llama-server":
            works.append(work(plan, OURS_BASE, await stack.enter_async_context(gemlane(setup)), None))
        if plan.sides != "gemlane":
            side = await stack.enter_async_context(llama_server(setup, n_adapters=0))
            works.append(work(plan, peer, side, None))
        rounds = await in_turns(plan, works)
    claims = against(rounds, "base", OURS_BASE, peer) if plan.sides == "both" else []
    return Result("base", rounds.series(*FIELDS), tuple(claims))


async def adapter(plan: Plan) -> Result:
    """One adapter: our server, also with its base; llama-server with just that adapter."""
    setup = plan.setup()
    peer = "llama-server with that one, one adapter"
    async with AsyncExitStack() as stack:
        works = []
        if plan.sides != "llama-server":
            ours = await stack.enter_async_context(gemlane(setup))
            works += [work(plan, OURS_BASE, ours, None), work(plan, OURS_ADAPTER, ours, 0)]
        if plan.sides != "gemlane":
            side = await stack.enter_async_context(llama_server(setup, n_adapters=1))
            works.append(work(plan, peer, side, 0))
        rounds = await in_turns(plan, works)
    claims: list[Claim] = []
    if plan.sides != "llama-server":
        costs = (OURS_BASE, OURS_ADAPTER)
        claims.append(rounds.ratio("decode time, one adapter / base", "decode_rate", costs, ceiling=1.05))
        claims.append(rounds.ratio("prompt time, one adapter / base", "prompt_rate", costs))
    if plan.sides == "both":
        claims += against(rounds, "one adapter", OURS_ADAPTER, peer)
    return Result("adapter", rounds.series(*FIELDS), tuple(claims))


async def lanes(plan: Plan) -> Result:
    """The base model on a server with lanes, and on one without."""
    setup = plan.setup()
    plain_name, laned_name = "gemlane without lanes, base", "gemlane with lanes, base"
    async with AsyncExitStack() as stack:
        nothing = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bare = dataclasses.replace(setup, adapters=nothing)
        laned = await stack.enter_async_context(gemlane(setup))
        options = ("--adapter-batching", "grouped")
        plain = await stack.enter_async_context(gemlane(bare, *options, name="gemlane without lanes"))
        works = [work(plan, laned_name, laned, None), work(plan, plain_name, plain, None)]
        rounds = await in_turns(plan, works)
    order = (plain_name, laned_name)
    claims = (
        rounds.ratio("decode time of the base, with lanes / without", "decode_rate", order, ceiling=1.01),
        rounds.ratio("prompt time of the base, with lanes / without", "prompt_rate", order),
        rounds.alike("equal answers of the base, with lanes and without", order, floor=1.0),
    )
    return Result("lanes", rounds.series(*FIELDS), claims)
