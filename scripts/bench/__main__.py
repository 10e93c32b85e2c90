"""The benchmarks' command line: python -m scripts.bench [NAME...] [--repeats N] [--json FILE]."""

import argparse
import asyncio
import sys
import time
from pathlib import Path

from scripts.bench.clients import clients, few
from scripts.bench.eight import mixed, prompts, shared
from scripts.bench.gaps import gaps
from scripts.bench.lookup import lookup
from scripts.bench.many import many
from scripts.bench.memory import memory
from scripts.bench.peft import peft
from scripts.bench.plan import N_CELLS, N_CLIENTS, SIDES, Plan
from scripts.bench.prefix import prefix
from scripts.bench.report import Result, machine, save
from scripts.bench.scale import depth, width
from scripts.bench.sides import PEER, SideError
from scripts.bench.single import adapter, base, lanes
from scripts.bench.start import start
from scripts.bench.step import step
from scripts.bench.swap import swap
from scripts.make_shapes import DEFAULT_FOLDER, FILE_TYPES, SHAPES

BENCHMARKS = {
    "base": base,
    "adapter": adapter,
    "lanes": lanes,
    "shared": shared,
    "mixed": mixed,
    "prompts": prompts,
    "few": few,
    "clients": clients,
    "width": width,
    "depth": depth,
    "start": start,
    "memory": memory,
    "step": step,
    "swap": swap,
    "prefix": prefix,
    "gaps": gaps,
    "many": many,
    "lookup": lookup,
    "peft": peft,
}
ASKED_FOR = frozenset({"peft"})
"""Benchmarks that run only where they are named: they need more than this project and llama-server."""


def arguments() -> argparse.Namespace:
    """The command line; exits with a message where it cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench", description="Measure this server and llama-server."
    )
    everything = f"default: all but {', '.join(ASKED_FOR)}"
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; {everything}")
    parser.add_argument("--repeats", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer; default: %(default)s")
    parser.add_argument("--prompt-tokens", type=int, default=0, metavar="N", help="default: each benchmark's own")
    parser.add_argument("--threads", type=int, default=2, help="of each server; default: %(default)s")
    parser.add_argument("--shape", choices=SHAPES, default="2b", help="default: %(default)s")
    parser.add_argument("--type", choices=FILE_TYPES, default="q4_0", help="default: %(default)s")
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER, help="of the models; default: %(default)s")
    parser.add_argument("--sides", choices=SIDES, default="both", help="default: %(default)s")
    parser.add_argument("--clients", type=int, default=N_CLIENTS, help="at once; default: %(default)s")
    parser.add_argument("--cells", type=int, default=N_CELLS, help="of each server's cache; default: %(default)s")
    parser.add_argument("--llama-server", type=Path, default=PEER, metavar="FILE", help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every value to FILE")
    asked = parser.parse_args()
    unknown = set(asked.names) - set(BENCHMARKS)
    if unknown or min(asked.repeats, asked.threads, asked.clients, asked.tokens - 1) < 1:
        parser.error(
            f"no benchmark {min(unknown)!r}" if unknown else "--repeats, --threads, --clients >= 1 and --tokens >= 2"
        )
    return asked


def main() -> int:
    """Runs the named benchmarks, or all. Exit code 1: a bound was missed; 2: a benchmark did not run."""
    asked = arguments()
    plan = Plan(
        asked.folder,
        asked.shape,
        asked.type,
        asked.threads,
        asked.tokens,
        asked.repeats,
        asked.sides,
        asked.clients,
        asked.prompt_tokens,
        asked.cells,
        asked.llama_server,
    )
    results: list[Result] = []
    failed = []
    print(", ".join(machine().values()))
    for name in asked.names or [name for name in BENCHMARKS if name not in ASKED_FOR]:
        began_s = time.monotonic()
        try:
            results.append(asyncio.run(BENCHMARKS[name](plan)))
        except SideError as error:
            failed.append(name)
            print(f"{name} did not run: {error}", file=sys.stderr)
            continue
        print(f"\n{results[-1].table()}\n  in {time.monotonic() - began_s:.0f} s", flush=True)
        if asked.json:
            save(asked.json, {key: str(value) for key, value in vars(asked).items()}, results)
    return 2 if failed else int(not all(claim.is_met for result in results for claim in result.claims))


if __name__ == "__main__":
    sys.exit(main())
