"""What ``gemlane bench`` does with its arguments: it plans the load, runs it, shows its progress and its report."""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tqdm import tqdm

from runtime.bench.figures import LoadReport, report
from runtime.bench.plot import plot
from runtime.bench.request import MeasuredRequest, RequestForm
from runtime.bench.runner import LoadProgress, LoadRun, measure_tokens
from runtime.bench.schedule import LoadPlan, make_prompt
from runtime.bench.table import render
from runtime.bench.target import LoadTarget, find_target
from runtime.commands.bench import N_REQUESTS
from runtime.commands.stream import address_of
from runtime.errors import GemlaneError

_CALIBRATION_WORDS: Final = 64
_POLL_S: Final = 0.25
_EXIT_FAILED: Final = 1
_EXIT_INTERRUPTED: Final = 130


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
    """Check before a long load that the files can be written after it."""
    for path in (arguments.json, arguments.plot):
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise GemlaneError(f"cannot write {path}: it is a folder, or its folder is not there")


def make_plan(arguments: argparse.Namespace, target: LoadTarget, form: RequestForm) -> LoadPlan:
    """The load that the arguments ask for. One request is sent before it, which shows how many tokens a word has.

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
