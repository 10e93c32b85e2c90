"""What Ray costs a token: the same requests to the engine of this machine and to one replica on Ray.

    python -m scripts.cluster.overhead --model tiny.gguf

Both run the same engine process with one thread. Times are those of the web process: from one text to the next, from
the submission to the first text, and its own processor time.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Sequence

from runtime.cluster.engine import RayEngine
from runtime.config import ClusterSettings, EngineSettings, ServerSettings, Settings
from runtime.engines.protocol import ManagedEngine
from runtime.engines.supervisor import ChildEngine
from runtime.generation import GenerationRequest, Prompt, Sampling, Segment
from runtime.messages import Text

N_TOKENS = 200
CROWDS = (1, 8)


async def ask(engine: ManagedEngine, name: str) -> list[float]:
    """Seconds from the submission to the first text, then from text to text."""
    prompt = Prompt((Segment("capital of capital of", has_control_tokens=True),))
    sampling = Sampling(temperature=0, ignores_end=True)
    gaps, last = [], time.perf_counter()
    async with engine.generate(GenerationRequest(name, prompt, N_TOKENS, sampling, n_draft_max=0)) as events:
        async for event in events:
            if isinstance(event, Text):
                now = time.perf_counter()
                gaps.append(now - last)
                last = now
    return gaps


async def crowd(engine: ManagedEngine, size: int, repeats: int) -> str:
    """The figures of some requests at once: medians over the repeats, in milliseconds."""
    firsts, tokens, processor = [], [], []
    for number in range(repeats + 1):
        began, used = time.perf_counter(), time.process_time()
        gaps = await asyncio.gather(*(ask(engine, f"{number}-{client}") for client in range(size)))
        n_texts = sum(map(len, gaps))
        if number:  # the first one warms up
            firsts.append(statistics.median(gap[0] for gap in gaps))
            tokens.append((time.perf_counter() - began) / (n_texts / size))
            processor.append((time.process_time() - used) / n_texts)
    return " | ".join(spread(values) for values in (firsts, tokens, processor))


def spread(values: Sequence[float]) -> str:
    """Median and range, in milliseconds."""
    low, middle, high = (1000 * value for value in (min(values), statistics.median(values), max(values)))
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


async def measure(name: str, engine: ManagedEngine, repeats: int) -> None:
    """Print one row for each size of the crowd."""
    await engine.start()
    try:
        for size in CROWDS:
            print(f"| {name} | {size} | {await crowd(engine, size, repeats)} |", flush=True)
    finally:
        await engine.stop()


async def compare(model: str, repeats: int) -> None:
    """Print the table."""
    settings = EngineSettings(model=model, parallel=8, threads=1)
    print(
        "| engine | streams | first text, ms | from text to text, ms | web process's CPU a text, ms |\n|--|--|--|--|--|"
    )
    await measure("local", ChildEngine(settings, max_in_flight=64), repeats)
    ray = RayEngine(Settings(settings, ServerSettings(), ClusterSettings("ray", 1)), max_in_flight=64)
    await measure("ray", ray, repeats)


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    asyncio.run(compare(arguments.model, arguments.repeats))


if __name__ == "__main__":
    main()
