"""``gemlane bench``: load on a running server, and how fast it answers."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from tqdm import tqdm

from runtime.bench.figures import LoadReport, report
from runtime.bench.plot import plot
from runtime.bench.request import PATHS, MeasuredRequest, RequestForm
from runtime.bench.runner import LoadProgress, LoadRun, measure_tokens
from runtime.bench.schedule import LoadPlan, make_prompt
from runtime.bench.table import render
from runtime.bench.target import LoadTarget, find_target
from runtime.commands.chat import add_address, address_of
from runtime.errors import GemlaneError

N_REQUESTS: Final = 64
_CALIBRATION_WORDS: Final = 64
_POLL_S: Final = 0.25
_EXIT_FAILED: Final = 1
_EXIT_INTERRUPTED: Final = 130
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
    _check_folders(arguments)
    target = find_target(address_of(arguments), arguments.model)
    form = RequestForm(
        arguments.endpoint, arguments.max_tokens, arguments.temperature, ignores_end=not arguments.natural_end
    )
    plan = make_plan(arguments, target, form)
    title = describe(plan, arguments.prompt_tokens, target.address.url)
    print(title, flush=True)
    load, is_interrupted = LoadRun(target, form, plan), False
    try:
        load.start()
        _follow(load, plan)
    except KeyboardInterrupt:
        is_interrupted = True
        print("stopped; this was measured until then:", file=sys.stderr)
        load.stop()
    records = load.records()
    wall_s = max((record.end_s for record in records if record.end_s is not None), default=0.0)
    found = report(records, wall_s)
    print(f"\n{render(found)}")
    if arguments.json:
        arguments.json.write_text(json.dumps(to_json(arguments, found, records), indent=1) + "\n", encoding="utf-8")
    if arguments.plot:
        arguments.plot.write_text(plot(title, records), encoding="utf-8")
    if is_interrupted:
        return _EXIT_INTERRUPTED
    return _EXIT_FAILED if found.together.n_failed or not found.together.n_answered else 0


def _check_folders(arguments: argparse.Namespace) -> None:
    """A file that cannot be written is better known before a long load than after it."""
    for path in (arguments.json, arguments.plot):
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise GemlaneError(f"cannot write {path}: it is a folder, or its folder is not there")


def make_plan(arguments: argparse.Namespace, target: LoadTarget, form: RequestForm) -> LoadPlan:
    """The load that the arguments ask for. One request is sent before it, which tells how many tokens a word has.

    Raises:
        GemlaneError: the server does not answer that request, or lists no adapter of a name.
    """
    adapters = target.chosen(arguments.adapters)
    first = make_prompt(_CALIBRATION_WORDS, random.Random(f"{arguments.seed} first"))  # noqa: S311 - not for secrets
    n_tokens = measure_tokens(target, dataclasses.replace(form, max_tokens=1), adapters[0], first)
    words_a_token = _CALIBRATION_WORDS / n_tokens if n_tokens else 1.0
    n_requests = arguments.requests or (None if arguments.duration else N_REQUESTS)
    return LoadPlan(
        adapters,
        arguments.alpha,
        n_requests,
        arguments.duration,
        min(arguments.clients, n_requests or arguments.clients),
        arguments.rate,
        arguments.cv,
        max(1, round(arguments.prompt_tokens * words_a_token)),
        arguments.max_tokens,
        arguments.seed,
    )


def describe(plan: LoadPlan, n_prompt: int, url: str) -> str:
    """The load in a line."""
    loop = f"{plan.n_clients} clients" if plan.rate is None else f"{plan.rate:g} requests a second, cv {plan.cv:g}"
    much = [f"{plan.n_requests} requests"] if plan.n_requests else []
    much += [f"{plan.duration_s:g} s"] if plan.duration_s else []
    chosen = plan.adapters[0] if len(plan.adapters) == 1 else f"{len(plan.adapters)} adapters, alpha {plan.alpha:g}"
    return f"{url}: {loop}, {' or '.join(much)}, {chosen}, {n_prompt} tokens in, {plan.max_tokens} out"


def _follow(load: LoadRun, plan: LoadPlan) -> None:
    """Show the load's progress until it ends; nothing where standard error is not a terminal."""
    form = "{desc} {percentage:3.0f}% |{bar}| {elapsed}" if plan.n_requests else "{desc} {elapsed}"
    with tqdm(total=plan.n_requests, desc="starting", leave=False, disable=None, bar_format=form) as bar:
        while not load.wait(_POLL_S):
            _show(bar, load.progress())


def _show(bar: Any, now: LoadProgress) -> None:
    failed = f", {now.n_failed} failed" if now.n_failed else ""
    speed = now.n_tokens / now.elapsed_s if now.elapsed_s else 0.0
    answered, running = now.n_ended - now.n_failed, now.n_sent - now.n_ended
    bar.set_description_str(f"{answered} answered{failed}, {running} running, {speed:.0f} tokens/s", refresh=False)
    bar.update(now.n_ended - bar.n)
    bar.refresh()


def to_json(arguments: argparse.Namespace, found: LoadReport, records: Sequence[MeasuredRequest]) -> dict[str, Any]:
    """The settings, the report and every request; seconds, and tokens a second. No token or prompt is in it."""
    settings = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(arguments).items()
        if name not in ("run", "command", "version", "token_file", "ca_file")
    }
    return {
        "settings": settings,
        **dataclasses.asdict(found),
        "requests": [
            {
                "number": record.number,
                "adapter": record.adapter,
                "due_s": record.due_s,
                "first_s": record.first_s,
                "end_s": record.end_s,
                "gaps_s": record.gaps_s,
                "prompt_tokens": record.n_prompt,
                "tokens": record.n_tokens,
                "error": record.error,
                "cancelled": record.is_cancelled,
            }
            for record in records
        ],
    }
