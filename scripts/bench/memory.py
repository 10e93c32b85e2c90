"""The most memory that each server takes alone: with and without adapters, and with quantised keys and values."""

import asyncio
import dataclasses
import tempfile
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from scripts.bench.plan import Plan, tell
from scripts.bench.report import Claim, Result, Series
from scripts.bench.rounds import Work, measure_round
from scripts.bench.sides import Memory, Setup, Side, gemlane, llama_server

N_PROMPT = 64
SAMPLE_S = 0.2
QUANTISED_OURS = ("--kv-type", "q8_0")
QUANTISED_THEIRS = ("-ctk", "q8_0", "-ctv", "q8_0", "-fa", "on")
Starter = Callable[[], AbstractAsyncContextManager[Side]]


@dataclasses.dataclass(frozen=True, slots=True)
class Peak:
    """The largest of all samples, in bytes; `rss` is the kernel's own record, mapped pages of each process counted."""

    rss: int
    pss: int
    private: int


async def watch(side: Side, samples: list[Memory]) -> None:
    """Samples until it is cancelled."""
    while True:
        samples.append(side.memory())
        await asyncio.sleep(SAMPLE_S)


async def measure_peak(plan: Plan, side: Side, n_adapters: int) -> Peak:
    """Eight requests at once, twice."""
    adapters = tuple(client % n_adapters if n_adapters else None for client in range(plan.n_clients))
    work = Work(side.name, side, adapters, plan.n_prompt or N_PROMPT, plan.n_tokens)
    samples = [side.memory()]
    watcher = asyncio.create_task(watch(side, samples))
    try:
        for repeat in (1, 2):
            await measure_round(work, repeat)
        samples.append(side.memory())
    finally:
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)
    pss, private = (max(getattr(one, name) for one in samples) for name in ("pss", "private"))
    return Peak(side.peak_bytes(), pss, private)


def starters(plan: Plan, setup: Setup, nothing: Path) -> dict[str, tuple[Starter, int]]:
    """The servers by name, and how many adapters each is asked for."""
    bare = dataclasses.replace(setup, adapters=nothing)
    n_all = len(setup.adapter_files)
    ours: dict[str, tuple[Starter, int]] = {
        "gemlane, base": (lambda: gemlane(bare), 0),
        "gemlane, 8 adapters": (lambda: gemlane(setup), n_all),
        "gemlane, 8 adapters, keys and values Q8_0": (lambda: gemlane(setup, *QUANTISED_OURS), n_all),
    }
    theirs: dict[str, tuple[Starter, int]] = {
        "llama-server, base": (lambda: llama_server(setup, n_adapters=0), 0),
        "llama-server, 8 adapters": (lambda: llama_server(setup), n_all),
        "llama-server, 8 adapters, keys and values Q8_0": (lambda: llama_server(setup, *QUANTISED_THEIRS), n_all),
    }
    return {"both": ours | theirs, "gemlane": ours, "llama-server": theirs}[plan.sides]


async def memory(plan: Plan) -> Result:
    """Every server once; memory does not spread as time does."""
    setup = plan.setup()
    peaks: dict[str, Peak] = {}
    with tempfile.TemporaryDirectory(prefix="gemlane-bench-") as nothing:
        for name, (starter, n_adapters) in starters(plan, setup, Path(nothing)).items():
            async with starter() as side:
                one = peaks[name] = await measure_peak(plan, side, n_adapters)
            tell(f"{name}: RSS {one.rss / 1e9:.2f}, PSS {one.pss / 1e9:.2f}, private {one.private / 1e9:.2f} GB")
    series = [
        Series(f"{name}: peak {title}", "GB", (getattr(one, field) / 1e9,))
        for field, title in (("rss", "RSS"), ("pss", "PSS"), ("private", "private"))
        for name, one in peaks.items()
    ]
    claims = [
        Claim(f"peak PSS, {ours} / llama-server's", (one.pss / peaks[theirs].pss,))
        for ours, one in peaks.items()
        if (theirs := ours.replace("gemlane", "llama-server")) in peaks and ours.startswith("gemlane")
    ]
    return Result("memory", tuple(series), tuple(claims))
