"""Lane hits with many adapters over two replicas: with affinity, without it, and by an oracle's placement.

    python -m scripts.cluster.affinity --model tiny.gguf --adapter tag.gguf

Copies of the adapter differ in one byte, so that each has its own digest. Requests are drawn by Zipf's law, and a fixed
number of them is in flight. A hit is a request whose lane needs no fill. The oracle knows how often each adapter will
be asked for, gives each to one replica so that both have the same to do, and never sends it elsewhere.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import random
import tempfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, Final

from runtime.cluster.engine import RayEngine
from runtime.cluster.router import AffinityRouter
from runtime.config import ClusterSettings, EngineSettings, ServerSettings, Settings
from runtime.generation import Blend, BlendMember, GenerationRequest, Prompt, Sampling, Segment
from scripts.bench.dropped import numbered
from scripts.cluster.least_loaded import LeastLoadedRouter

N_REPLICAS: Final = 2
N_LANES: Final = 8


def oracle_hits(trace: list[str], digests: list[str], weights: list[float]) -> int:
    """Hits of the best fixed placement, with least-recently-used lanes."""
    home, shares = {}, [0.0] * N_REPLICAS
    for digest, weight in zip(digests, weights, strict=True):
        home[digest] = shares.index(min(shares))
        shares[home[digest]] += weight
    lanes: list[OrderedDict[str, None]] = [OrderedDict() for _ in range(N_REPLICAS)]
    n_hits = 0
    for digest in trace:
        used = lanes[home[digest]]
        n_hits += digest in used
        used[digest] = None
        used.move_to_end(digest)
        if len(used) > N_LANES:
            used.popitem(last=False)
    return n_hits


def copies(adapter: Path, folder: Path, number: int) -> dict[str, Path]:
    """Digest -> file of as many adapters."""
    content, files = adapter.read_bytes(), {}
    for index in range(number):
        copy = numbered(content, index)
        path = files[hashlib.sha256(copy).hexdigest()] = folder / f"{index}.gguf"
        path.write_bytes(copy)
    return files


async def ask(engine: RayEngine, number: int, digest: str) -> None:
    """One short answer."""
    prompt = Prompt((Segment(f"Number {number}", has_control_tokens=False),))
    request = GenerationRequest(f"r{number}", prompt, 8, Sampling(temperature=0), Blend((BlendMember(digest),)))
    async with engine.generate(request) as events:
        async for _ in events:
            pass


async def n_fills(engine: RayEngine) -> int:
    """Lanes that all replicas have filled, once the last report says so and the router knows which replicas serve."""
    await asyncio.sleep(3)
    stats = engine.stats
    return stats.lanes.n_fills if stats is not None else 0


async def hits(settings: Settings, router: type[Any], files: dict[str, Path], trace: list[str], at_once: int) -> int:
    """Requests of the trace whose lane was there already."""
    engine = RayEngine(settings, max_in_flight=2 * at_once, router=router)
    await engine.start()
    try:
        for digest, path in files.items():
            await engine.add_adapter(digest, path)
        n_before = await n_fills(engine)  # the self-check fills lanes too
        left = iter(enumerate(trace))

        async def client() -> None:
            for number, digest in left:
                await ask(engine, number, digest)

        await asyncio.gather(*(client() for _ in range(at_once)))
        return len(trace) - (await n_fills(engine) - n_before)
    finally:
        await engine.stop()


async def compare(arguments: argparse.Namespace, folder: Path) -> None:
    """Print the table."""
    rng = random.Random(arguments.seed)
    files = copies(Path(arguments.adapter), folder, arguments.adapters)
    digests = list(files)
    engine = EngineSettings(model=arguments.model, lanes=N_LANES, parallel=8, threads=1, adapter_batching="mixed")
    settings = Settings(engine, ServerSettings(), ClusterSettings("ray", N_REPLICAS))
    print("| popularity | oracle | with affinity | of the oracle | without | of the oracle |\n|--|--|--|--|--|--|")
    for exponent in (0.0, 1.0):
        weights = [1 / (rank + 1) ** exponent for rank in range(len(digests))]
        trace = rng.choices(digests, weights, k=arguments.requests)
        best = oracle_hits(trace, digests, weights)
        found = [
            await hits(settings, router, files, trace, arguments.at_once)
            for router in (AffinityRouter, LeastLoadedRouter)
        ]
        cells = [cell for n in found for cell in (f"{n}", f"{n / best:.2f}")]
        name = f"Zipf {exponent:g}" if exponent else "equal"
        print(f"| {name}, {len(trace)} requests | {best} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--adapter", required=True)
    parser.add_argument("--adapters", type=int, default=64)
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--at-once", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(compare(parser.parse_args(), Path(folder)))


if __name__ == "__main__":
    main()
