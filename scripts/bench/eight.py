"""Eight clients at once, on one adapter and on eight, and their prompts alone."""

from contextlib import AsyncExitStack

from scripts.bench.plan import Plan
from scripts.bench.report import Claim, Result
from scripts.bench.rounds import Work, in_turns
from scripts.bench.sides import gemlane, llama_server

N_ADAPTERS = 8
N_PROMPT = 64
N_LONG_PROMPT = 256
SHARED, MIXED = "gemlane, 1 shared adapter", "gemlane, 8 adapters"
BASE = "gemlane, base"
FIELDS = ("rate", "cpu_rate", "first_token_s", "prompt_rate", "decode_rate")


def adapters_of(plan: Plan, n_adapters: int) -> tuple[int, ...]:
    """The adapter of each client."""
    return tuple(client % n_adapters for client in range(plan.n_clients))


async def shared(plan: Plan) -> Result:
    """All clients on one adapter: ours with eight adapters in its folder, llama-server with just that one."""
    setup, adapters = plan.setup(N_ADAPTERS), adapters_of(plan, 1)
    peer = "llama-server with that one, 1 shared adapter"
    async with AsyncExitStack() as stack:
        works = []
        if plan.sides != "llama-server":
            side = await stack.enter_async_context(gemlane(setup))
            works.append(Work(SHARED, side, adapters, plan.n_prompt or N_PROMPT, plan.n_tokens))
        if plan.sides != "gemlane":
            side = await stack.enter_async_context(llama_server(setup, n_adapters=1))
            works.append(Work(peer, side, adapters, plan.n_prompt or N_PROMPT, plan.n_tokens))
        rounds = await in_turns(plan, works)
    claims: tuple[Claim, ...] = ()
    if plan.sides == "both":
        both = (SHARED, peer)
        claims = (
            rounds.ratio("throughput, 1 shared adapter / llama-server's", "rate", both, floor=1.0),
            rounds.ratio("slowest first token, 1 shared / llama-server's", "first_token_s", both, ceiling=1.0),
        )
    return Result("shared", rounds.series(*FIELDS), claims)


async def mixed(plan: Plan) -> Result:
    """Clients on eight adapters: ours, also on one of them; llama-server with the same eight."""
    setup = plan.setup(N_ADAPTERS)
    peer = "llama-server, 8 adapters"
    n_prompt = plan.n_prompt or N_PROMPT
    async with AsyncExitStack() as stack:
        works = []
        if plan.sides != "llama-server":
            side = await stack.enter_async_context(gemlane(setup))
            works += [
                Work(MIXED, side, adapters_of(plan, N_ADAPTERS), n_prompt, plan.n_tokens),
                Work(SHARED, side, adapters_of(plan, 1), n_prompt, plan.n_tokens),
            ]
        if plan.sides != "gemlane":
            side = await stack.enter_async_context(llama_server(setup))
            works.append(Work(peer, side, adapters_of(plan, N_ADAPTERS), n_prompt, plan.n_tokens))
        rounds = await in_turns(plan, works)
    claims: list[Claim] = []
    if plan.sides != "llama-server":
        claims += [
            rounds.ratio("throughput, 8 adapters / 1 shared", "rate", (MIXED, SHARED), floor=0.97),
            rounds.ratio("decode, 8 adapters / 1 shared", "decode_rate", (MIXED, SHARED)),
        ]
    if plan.sides == "both":
        both = (MIXED, peer)
        claims += [
            rounds.ratio("throughput, 8 adapters / llama-server's", "rate", both, floor=1.8),
            rounds.ratio("slowest first token, 8 adapters / llama-server's", "first_token_s", both, ceiling=0.25),
        ]
    return Result("mixed", rounds.series(*FIELDS), tuple(claims))


async def prompts(plan: Plan) -> Result:
    """Eight prompts of 256 tokens at once, one token out: eight adapters, one, and none."""
    setup, n_prompt = plan.setup(N_ADAPTERS), plan.n_prompt or N_LONG_PROMPT
    async with AsyncExitStack() as stack:
        side = await stack.enter_async_context(gemlane(setup))
        works = [
            Work(MIXED, side, adapters_of(plan, N_ADAPTERS), n_prompt, 1),
            Work(SHARED, side, adapters_of(plan, 1), n_prompt, 1),
            Work(BASE, side, (None,) * plan.n_clients, n_prompt, 1),
        ]
        peer = "llama-server with one adapter, 1 shared adapter"
        if plan.sides == "both":
            other = await stack.enter_async_context(llama_server(setup, n_adapters=1))
            works.append(Work(peer, other, adapters_of(plan, 1), n_prompt, 1))
        rounds = await in_turns(plan, works)
    claims = [
        rounds.ratio("prompts, 8 adapters / 1 shared", "prompt_rate", (MIXED, SHARED), floor=0.95),
        rounds.ratio("prompts, 1 shared adapter / base", "prompt_rate", (SHARED, BASE)),
    ]
    if plan.sides == "both":
        claims.append(rounds.ratio("prompts, 1 shared / llama-server's", "prompt_rate", (SHARED, peer), floor=1.0))
    return Result("prompts", rounds.series("prompt_rate", "prompt_cpu_rate", "first_token_s"), tuple(claims))
