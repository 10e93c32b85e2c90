"""transformers and PEFT, which mix adapters in one batch too: one client and eight, on weights of the same width."""

import importlib.util
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from scripts.bench.asks import GEMLANE
from scripts.bench.eight import N_ADAPTERS, N_PROMPT, adapters_of
from scripts.bench.plan import Plan
from scripts.bench.report import Claim, Result
from scripts.bench.rounds import Work, in_turns
from scripts.bench.sides import Setup, Side, SideError, gemlane, log_path, running

DTYPES = {"f32": "float32", "f16": "bfloat16"}
"""The type that torch computes in, by that of our weights; processors compute BF16 faster than F16 there."""
MODULES = ("torch", "transformers", "peft")
FIELDS = ("rate", "cpu_rate", "first_token_s", "prompt_rate", "decode_rate")
OURS, PEFT = "gemlane", "PEFT"


@asynccontextmanager
async def peft_server(setup: Setup, dtype: str) -> AsyncIterator[Side]:
    """PEFT's models with all adapters of the setup, until the block ends.

    Raises:
        SideError: they are not installed, or did not start.
    """
    missing = [name for name in MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise SideError(f"{', '.join(missing)} not installed: pip install '.[train]'")
    values = ("--model", setup.model, "--adapters", setup.adapters, "--threads", setup.n_threads, "--dtype", dtype)
    command = [sys.executable, "-m", "scripts.bench.peft_server", *map(str, values)]
    async with running(PEFT, GEMLANE, command, log_path(setup, PEFT), n_adapters=len(setup.adapter_files)) as side:
        yield side


async def peft(plan: Plan) -> Result:
    """One client on the base and on one adapter, and eight clients on one and on eight, on each side."""
    if plan.type_name not in DTYPES:
        raise SideError(f"PEFT computes no {plan.type_name}: choose --type {' or '.join(DTYPES)}")
    setup, n_prompt = plan.setup(N_ADAPTERS), plan.n_prompt or N_PROMPT
    asked: dict[str, tuple[int | None, ...]] = {
        "base": (None,),
        "one adapter": (0,),
        f"{plan.n_clients} clients, 1 shared adapter": adapters_of(plan, 1),
        f"{plan.n_clients} clients, {N_ADAPTERS} adapters": adapters_of(plan, N_ADAPTERS),
    }
    async with AsyncExitStack() as stack:
        ours = await stack.enter_async_context(gemlane(setup, "--lane-type", plan.type_name))
        peer = await stack.enter_async_context(peft_server(setup, DTYPES[plan.type_name]))
        works = [
            Work(f"{name}, {what}", side, adapters, n_prompt, plan.n_tokens)
            for what, adapters in asked.items()
            for name, side in ((OURS, ours), (PEFT, peer))
        ]
        rounds = await in_turns(plan, works)
    # In F32 both compute the same; F16 and BF16 round differently.
    alike = 1.0 if plan.type_name == "f32" else None
    claims: list[Claim] = []
    for what in asked:
        both = (f"{OURS}, {what}", f"{PEFT}, {what}")
        claims += [
            rounds.ratio(f"prompt, {what} / PEFT's", "prompt_rate", both),
            rounds.ratio(f"decode, {what} / PEFT's", "decode_rate", both),
            rounds.alike(f"equal answers, {what}", both, floor=alike),
        ]
    mixed, shared = (f"{PEFT}, {what}" for what in list(asked)[:1:-1])
    claims.append(rounds.ratio("throughput, PEFT's 8 adapters / its 1 shared", "rate", (mixed, shared)))
    return Result("peft", rounds.series(*FIELDS), tuple(claims))
