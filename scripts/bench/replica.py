"""What one server does alone, as numbers that `scripts.simulate` places thousands of such servers by.

    python -m scripts.bench.replica --json scripts/simulate/figures.json

Measured are the time of a step for 1 to 8 streams, each under an adapter of its own; of a prompt's token; of an adapter
that is in no lane; and of a prefix that the cache holds. Medians of the repeats. Nothing else may run on the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
from pathlib import Path

import numpy as np

from scripts.bench.asks import Ask, random_prompt
from scripts.bench.plan import RANK, tell, warm
from scripts.bench.report import machine
from scripts.bench.sides import Setup, Side, gemlane
from scripts.make_shapes import DEFAULT_FOLDER, SHAPES, TYPES, adapter_folder, model_path

N_STREAMS = (1, 2, 4, 8)
N_LANES = 8
N_ADAPTERS = N_LANES + N_LANES // 2
"""Asked in turns, each is in no lane any more when its turn comes again."""
N_PREFIX = 256
N_OWN = 16


async def step_s(side: Side, generator: np.random.Generator, n_streams: int, n_tokens: int) -> float:
    """Seconds of a step in which each of the streams gets a token, each under another adapter."""
    asks = [Ask(random_prompt(generator, N_OWN), n_tokens, adapter) for adapter in range(n_streams)]
    answers = await side.ask_all(asks)
    begun = max(answer.first_token_s for answer in answers)
    # Steps after the last stream's first token: all streams take part in them.
    counts = [sum(arrival > begun for arrival in answer.arrivals_s) for answer in answers]
    ended = min(answer.arrivals_s[-1] for answer in answers)
    return (ended - begun) / min(counts)


async def first_token_s(side: Side, prompt: str, adapter: int) -> float:
    """Seconds to the first token of a request alone."""
    return (await side.ask(Ask(prompt, 2, adapter))).first_token_s


async def measure(setup: Setup, repeats: int, n_tokens: int) -> dict[str, float]:
    """Every figure, in seconds and as its median, by its name."""
    values: dict[str, list[float]] = {}
    generator = np.random.default_rng(0)
    async with gemlane(setup, "--lanes", str(N_LANES)) as side:
        await warm(side, [None, *range(N_ADAPTERS)])
        for _ in range(repeats):
            for n_streams in N_STREAMS:
                values.setdefault(f"step_s_{n_streams}", []).append(await step_s(side, generator, n_streams, n_tokens))
            prefix = random_prompt(generator, N_PREFIX)
            await first_token_s(side, random_prompt(generator, N_OWN), 0)
            short = await first_token_s(side, random_prompt(generator, N_OWN), 0)
            new = await first_token_s(side, prefix + random_prompt(generator, N_OWN + 1), 0)
            seen = await first_token_s(side, prefix + random_prompt(generator, N_OWN + 1), 0)
            values.setdefault("prompt_token_s", []).append((new - short) / N_PREFIX)
            values.setdefault("seen_prefix_s", []).append(max(seen - short, 0.0))
            in_lane, in_none = [], []
            for adapter in range(N_ADAPTERS):
                in_none.append(await first_token_s(side, random_prompt(generator, N_OWN), adapter))
                in_lane.append(await first_token_s(side, random_prompt(generator, N_OWN), adapter))
            fill = statistics.median(in_none) - statistics.median(in_lane)
            values.setdefault("fill_s", []).append(max(fill, 0.0))
            tell(", ".join(f"{name} {each[-1]:.4f}" for name, each in values.items()))
    for name, each in values.items():
        print(f"{name}: {statistics.median(each):.4f} ({min(each):.4f} to {max(each):.4f})")
    return {name: round(statistics.median(each), 5) for name, each in values.items()}


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="2b", help="default: %(default)s")
    parser.add_argument("--type", choices=TYPES, default="q4_0", help="default: %(default)s")
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER, help="of the models; default: %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--tokens", type=int, default=32, help="of an answer; default: %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    asked = parser.parse_args()
    adapters = adapter_folder(asked.folder, asked.shape, N_ADAPTERS, RANK)
    setup = Setup(model_path(asked.folder, asked.shape, asked.type), adapters, asked.threads)
    figures = asyncio.run(measure(setup, asked.repeats, asked.tokens))
    if asked.json:
        what = f"{asked.shape} in {asked.type}, adapters of rank {RANK}, {asked.threads} threads"
        measured = {"measured_on": ", ".join(machine().values()), "model": what}
        asked.json.write_text(json.dumps(measured | figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
