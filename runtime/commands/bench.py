"""``gemlane bench``: load on a running server, and how fast it answers."""

from __future__ import annotations

import argparse
import importlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Final

from runtime.bench.endpoints import PATHS
from runtime.commands.address import add_address

N_REQUESTS: Final = 64
EPILOG: Final = """\
With --clients the loop is closed: each client sends its next request when it has its answer, so that a slow server gets
fewer requests. With --rate the loop is open, as users are: requests come when they are due, and their times are counted
from then. --cv says how unevenly: 0 like a clock, 1 at random (Poisson), more in bursts. Adapters are chosen by a power
law: the k-th of the list in proportion to 1 / k ^ alpha. One seed gives the same load again.

  gemlane bench --clients 8                                 the base, eight at a time
  gemlane bench --adapters all --alpha 1 --clients 16       every adapter of the server
  gemlane bench --adapters base,pirate --rate 2 --cv 2 --duration 60 --plot load.svg
  gemlane bench --url http://127.0.0.1:8081                 llama-server, vLLM, or another server with OpenAI's API

Exit status: 0 all answered, 1 some were not, 2 no load was run, 130 stopped by Ctrl-C (what was measured is shown)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = "Put a load on a running server, and show how fast it answers."
    parser.epilog, parser.formatter_class = EPILOG, argparse.RawDescriptionHelpFormatter
    add_address(parser)
    parser.add_argument("--model", default="", metavar="ID", help="the base model's id (default: the first one listed)")
    loop = parser.add_mutually_exclusive_group()
    loop.add_argument("--clients", type=_count, default=8, metavar="N", help="closed loop of N (default: %(default)s)")
    loop.add_argument("--rate", type=_positive, metavar="R", help="open loop of R requests a second on average")
    parser.add_argument(
        "--cv", type=_not_negative, default=1.0, metavar="C", help="unevenness of --rate (default: %(default)s)"
    )
    parser.add_argument("--requests", type=_count, metavar="N", help=f"requests to send (default: {N_REQUESTS})")
    parser.add_argument("--duration", type=_positive, metavar="S", help="seconds to send for, instead or at most")
    parser.add_argument(
        "--adapters", default="base", metavar="NAMES", help="all, or names with commas between (default: %(default)s)"
    )
    parser.add_argument(
        "--alpha", type=_not_negative, default=1.0, metavar="A", help="0: all alike (default: %(default)s)"
    )
    parser.add_argument(
        "--prompt-tokens",
        type=_count,
        default=128,
        metavar="N",
        help="tokens of a prompt, about (default: %(default)s)",
    )
    parser.add_argument(
        "--max-tokens", type=_count, default=64, metavar="N", help="tokens of an answer (default: %(default)s)"
    )
    parser.add_argument("--natural-end", action="store_true", help="answers may end before --max-tokens")
    parser.add_argument("--temperature", type=_not_negative, default=0.0, metavar="T", help="default: %(default)s")
    parser.add_argument("--endpoint", choices=tuple(PATHS), default="completions", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="repeats a load (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report and every request to FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw the load into FILE.svg")


def _number(minimum: float, *, is_open: bool) -> Callable[[str], float]:
    """A reader of finite numbers from ``minimum`` on, itself excluded if ``is_open``."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value < minimum or (is_open and value == minimum):
            raise argparse.ArgumentTypeError(f"{text!r} is not a number {'above' if is_open else 'from'} {minimum:g}")
        return value

    return read


_positive: Final = _number(0, is_open=True)
_not_negative: Final = _number(0, is_open=False)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 0 < int(text) <= 1_000_000):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to 1,000,000")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    """Run a load; the exit status."""
    # The HTTP client and tqdm come with it; the help answers at once without them.
    return int(importlib.import_module("runtime.bench.command").run(arguments))
