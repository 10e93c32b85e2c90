"""How soon a server that is started answers, and how long lanes take to be proven at a machine's first start."""

import asyncio
import dataclasses
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from scripts.bench.asks import Ask
from scripts.bench.plan import Plan, tell
from scripts.bench.report import Claim, Result, Series
from scripts.bench.sides import Setup, Side, gemlane, llama_server

FIRST, LATER, PEER_NAME = "gemlane, first start", "gemlane, later start", "llama-server"
POLL_S = 0.1


@dataclasses.dataclass(frozen=True, slots=True)
class Start:
    """Seconds from the start of the process; the CPU time is that until the first token."""

    ready_s: float
    first_token_s: float
    cpu_s: float
    proven_s: float | None = None
    """Until lanes are proven, where that was waited for."""


async def measure_start(start: AbstractAsyncContextManager[Side], *, is_proof_waited_for: bool = False) -> Start:
    """Starts a server, and asks for one token under an adapter as soon as it is ready."""
    start_s = time.perf_counter()
    async with start as side:
        ready_s = time.perf_counter() - start_s
        await side.ask(Ask(" 10 20", 1, 0))
        first_token_s, cpu_s = time.perf_counter() - start_s, side.cpu_s()
        if not is_proof_waited_for:
            return Start(ready_s, first_token_s, cpu_s)
        while (await side.health())["adapter_batching"] != "mixed":  # noqa: ASYNC110 - another process
            await asyncio.sleep(POLL_S)
        return Start(ready_s, first_token_s, cpu_s, time.perf_counter() - start_s)


@asynccontextmanager
async def started(setup: Setup, state: Path) -> AsyncIterator[Side]:
    """Our server as a user starts it: lanes are proven where that is not remembered."""
    async with gemlane(setup, "--adapter-batching", "auto", "--state-dir", str(state)) as side:
        yield side


async def start(plan: Plan) -> Result:
    """Both servers with eight adapters; ours where nothing is known of model and adapters, and where all is."""
    setup = plan.setup()
    starts: dict[str, list[Start]] = {}
    for _ in range(plan.repeats):
        with tempfile.TemporaryDirectory(prefix="gemlane-bench-") as folder:
            ways: dict[str, Callable[[], AbstractAsyncContextManager[Side]]] = {}
            if plan.sides != "llama-server":
                ways |= {name: lambda state=Path(folder): started(setup, state) for name in (FIRST, LATER)}  # type: ignore[misc]
            if plan.sides != "gemlane":
                ways[PEER_NAME] = lambda: llama_server(setup)
            for name, way in ways.items():
                one = await measure_start(way(), is_proof_waited_for=name == FIRST)
                starts.setdefault(name, []).append(one)
                tell(f"{name}: ready after {one.ready_s:.1f} s, first token after {one.first_token_s:.1f} s")
    return conclude(starts)


def conclude(starts: dict[str, list[Start]]) -> Result:
    """The series and claims of all starts."""
    series = {
        (name, field): Series(f"{name}: {title}", "s", tuple(getattr(one, field) for one in values))
        for field, title in (("ready_s", "ready"), ("first_token_s", "first token"), ("cpu_s", "CPU time until then"))
        for name, values in starts.items()
    }
    proven = [one.proven_s for one in starts.get(FIRST, ()) if one.proven_s is not None]
    more = (Series(f"{FIRST}: lanes proven", "s", tuple(proven)),) if proven else ()
    claims = [
        Claim(
            f"first token after a start, {name} / llama-server's",
            series[name, "first_token_s"].over(series[PEER_NAME, "first_token_s"]),
            cpu_values=series[name, "cpu_s"].over(series[PEER_NAME, "cpu_s"]),
        )
        for name in (FIRST, LATER)
        if name in starts and PEER_NAME in starts
    ]
    return Result("start", (*series.values(), *more), tuple(claims))
