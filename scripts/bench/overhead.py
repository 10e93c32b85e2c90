"""What an adapter costs against the base model, and what lanes cost a server that only serves the base."""

import dataclasses
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np

from scripts.bench.plan import Plan, tell, warm
from scripts.bench.report import Claim, Result, Series
from scripts.bench.sides import gemlane, llama_server

ROUNDS_A_REPEAT = 3


async def overhead(plan: Plan) -> Result:
    """One stream at a time: base on a server without lanes, base on one with lanes, one adapter."""
    setup = plan.setup()
    decode_ms: dict[str, list[float]] = {}
    cpu_ms: dict[str, list[float]] = {}
    async with AsyncExitStack() as stack:
        nothing = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bare = dataclasses.replace(setup, adapters=nothing)
        lanes = await stack.enter_async_context(gemlane(setup))
        plain = await stack.enter_async_context(
            gemlane(bare, "--adapter-batching", "grouped", name="gemlane without lanes")
        )
        work = {"base, no lanes": (plain, None), "base, with lanes": (lanes, None), "one adapter": (lanes, 0)}
        if plan.sides == "both":
            peer = await stack.enter_async_context(llama_server(setup))
            work |= {"llama-server, base": (peer, None), "llama-server, one adapter": (peer, 0)}
        for side, adapter in work.values():
            await warm(side, [adapter])
        for round_ in range(plan.repeats * ROUNDS_A_REPEAT):
            for name, (side, adapter) in work.items():
                (ask,) = plan.asks(np.random.default_rng(round_), [0])
                answer = await side.ask(dataclasses.replace(ask, adapter=adapter))
                decode_ms.setdefault(name, []).append(1e3 * answer.decode_s)
                cpu_ms.setdefault(name, []).append(1e3 * answer.decode_cpu_s / (answer.n_tokens - 1))
                tell(f"{name}: {decode_ms[name][-1]:.1f} ms, {cpu_ms[name][-1]:.1f} ms of CPU a token")
    wall = {name: Series(f"{name}: decode", "ms/token", tuple(values)) for name, values in decode_ms.items()}
    cpu = {name: Series(f"{name}: decode", "CPU ms/token", tuple(values)) for name, values in cpu_ms.items()}

    def compare(text: str, one: str, other: str, ceiling: float | None) -> Claim:
        return Claim(text, wall[one].over(wall[other]), ceiling=ceiling, cpu_values=cpu[one].over(cpu[other]))

    claims = [
        compare("decode under one adapter of rank 16 / of the base", "one adapter", "base, with lanes", 1.05),
        compare("decode of the base with lanes / without", "base, with lanes", "base, no lanes", 1.01),
    ]
    if "llama-server, base" in work:
        text = "for comparison, decode under an adapter / base, llama-server"
        claims.append(compare(text, "llama-server, one adapter", "llama-server, base", None))
    return Result("overhead", (*wall.values(), *cpu.values()), tuple(claims))
